"""Data sets: one file each, all giving `Sample`s; `sample.py` holds what they have in common."""
