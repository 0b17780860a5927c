"""Data sets: one file each, named in `registry.py`, all of them `RegionDataset`s (`dataset.py`) that give `Sample`s."""
