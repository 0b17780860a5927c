"""What PyTorch's convolutions take on a CPU beside arguments and results, by formulas. Nothing is allocated here.

oneDNN takes maps in channels_last as they are; others it brings into blocks of channels, and the result back. Kernels
are always brought into blocks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 16  # channels, with AVX-512


def is_packed(x: Tensor) -> bool:
    """Whether a map or patches are in channels_last."""
    return x.is_contiguous(memory_format=torch.channels_last)


def convolution(x: Tensor, kernels: Tensor, strided: bool = False) -> int:
    """Bytes of a convolution of x [B, C, H, W] with kernels [D, C, k, k]."""
    if is_packed(x) and not x.is_contiguous():
        return _copies_of(kernels) * kernels.nbytes
    gathered = 0 if x.is_contiguous() else x.nbytes
    out = x.nbytes // x.shape[1] * kernels.shape[0] // (4 if strided else 1)
    return gathered + max(_blocked(x) + kernels.nbytes, _blocked(x, out // max(1, kernels.shape[0]), kernels.shape[0]))


def convolution_backward(
    grad: Tensor, x: Tensor, kernels: Tensor, strided: bool = False, output_mask: Sequence[bool] = (True, True, True)
) -> int:
    """Bytes of the gradients of a convolution; `output_mask` says which of x's, the kernels' and the bias' are made."""
    packed = [is_packed(t) and not t.is_contiguous() for t in (grad, x)]
    if all(packed):
        return (_copies_of(kernels) + output_mask[1]) * kernels.nbytes
    gathered = sum(0 if t.is_contiguous() else t.nbytes for t in (grad, x))
    if not output_mask[1]:
        return gathered + _blocked(grad) + kernels.nbytes
    held = _blocked(grad) + _blocked(x)
    if kernels.element_size() == 2:
        held += 2 * kernels.nbytes  # their gradient is summed in float32
    if strided and output_mask[0]:  # the gradient of x twice, and once more as a result
        held = max(held, 2 * x.nbytes - kernels.nbytes)
    return gathered + max(held, kernels.nbytes)


def _copies_of(kernels: Tensor) -> int:
    """How many copies of the kernels are made: one in blocks and, unless they are in channels_last, one that is."""
    return 1 if is_packed(kernels) else 2


def _blocked(x: Tensor, plane: int | None = None, channels: int | None = None) -> int:
    """Bytes of a map in blocks of channels; images of three channels and the like are taken as they are."""
    channels = x.shape[1] if channels is None else channels
    plane = x.nbytes // max(1, channels) if plane is None else plane
    return plane * (-(-channels // BLOCK) * BLOCK) if channels >= BLOCK else 0
