"""The generator of the demonstration's scenes: their rules, layout and pictures. Knows no model."""
