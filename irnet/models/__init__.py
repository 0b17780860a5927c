"""The model: its roll-out in irnet.py, and its parts. Knows settings, regions and features; no files, no data sets."""
