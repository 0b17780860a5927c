"""Matrix products over the rows of each image: `segment_matmul` and its gradient's other half, `segment_outer`."""

from .api import segment_matmul, segment_outer

__all__ = ["segment_matmul", "segment_outer"]
