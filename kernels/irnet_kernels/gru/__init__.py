"""The convolutional GRU on patches (`conv_gru`) and its weights."""

from .api import ConvGRUWeights, conv_gru

__all__ = ["ConvGRUWeights", "conv_gru"]
