"""3x3 convolutions with fewer products than taps (`conv3x3`), which the model's wide layers use; no public operator."""

from .api import Conv3x3, conv3x3

__all__ = ["Conv3x3", "conv3x3"]
