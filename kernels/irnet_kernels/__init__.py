"""The operator library of irnet: region crops and pastes, the convolutional GRU, typed graph propagation, and matrix
products image by image.

It knows nothing of the model. Importing it starts no CUDA context and imports no Triton; without a compiler, Triton or
a GPU the reference implementations serve.
"""

from .dispatch import ImplementationUnavailable, available
from .graph import EdgeSet, propagate, propagate_regions
from .gru import ConvGRUWeights, conv_gru
from .modules import ClassGraphConv, ConvGRUCell, CropResize, PasteMean, RegionGraphConv
from .roi import crop_resize, paste_mean
from .segment import segment_matmul, segment_outer

__all__ = [
    "ClassGraphConv",
    "ConvGRUCell",
    "ConvGRUWeights",
    "CropResize",
    "EdgeSet",
    "ImplementationUnavailable",
    "PasteMean",
    "RegionGraphConv",
    "available",
    "conv_gru",
    "crop_resize",
    "paste_mean",
    "propagate",
    "propagate_regions",
    "segment_matmul",
    "segment_outer",
]
