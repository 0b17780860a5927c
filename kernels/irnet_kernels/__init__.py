"""The operator library of irnet: region crops and pastes, the convolutional GRU and typed graph propagation.

It knows nothing of the model. Importing it starts no CUDA context and imports no Triton; without a compiler, Triton or
a GPU the reference implementations serve.
"""

from .graph import EdgeSet, propagate, propagate_regions
from .gru import ConvGRUWeights, conv_gru
from .library import ImplementationUnavailable, available
from .roi import crop_resize, paste_mean

__all__ = [
    "ConvGRUWeights",
    "EdgeSet",
    "ImplementationUnavailable",
    "available",
    "conv_gru",
    "crop_resize",
    "paste_mean",
    "propagate",
    "propagate_regions",
]
