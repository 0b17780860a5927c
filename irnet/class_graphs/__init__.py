"""Class graphs: their format, and one builder per source."""
