"""What 3x3 convolutions and their gradients take on a CPU beside arguments and results: csrc/bindings/convolution.cpp
in bytes, for conv3x3 and for who else calls it. Nothing is allocated or computed here.
"""

import torch
from torch import Tensor

from .. import onednn

# Of `fewer_products` in csrc/bindings/convolution.cpp: the fewest channels, cells, and cells along an axis.
CHANNELS, CELLS, SIZE = 256, 768, 5
ROWS = 512  # kRows there


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> int:
    """Bytes of `irnet::conv3x3.cpp`."""
    return copies(x) + convolve(packed(x), weight)


def conv3x3_backward(grad: Tensor, x: Tensor, weight: Tensor, of_weight: bool) -> int:
    """Bytes of `irnet::conv3x3_backward.cpp`."""
    if of_weight:
        return copies(grad, x) + weight_gradient(packed(grad), packed(x), weight)
    return copies(grad) + map_gradient(packed(grad), x, weight)


def copies(*maps: Tensor) -> int:
    """Maps and patches are brought into channels_last, unless they are."""
    return sum(0 if onednn.is_packed(t) else t.nbytes for t in maps)


def packed(x: Tensor) -> Tensor:
    """A map of this shape in channels_last, on no device."""
    return torch.empty(x.shape, dtype=x.dtype, device="meta", memory_format=torch.channels_last)


def fewer_products(x: Tensor, kernels: Tensor) -> bool:
    """Whether maps x [B, C, H, W] are convolved by Winograd's products."""
    batch, _, height, width = x.shape
    enough = min(height, width) >= SIZE and batch * height * width >= CELLS and min(kernels.shape[:2]) >= CHANNELS
    return x.dtype == torch.float32 and enough


def convolve(x: Tensor, kernels: Tensor) -> int:
    """Bytes of `convolve` with x in channels_last."""
    if not fewer_products(x, kernels):
        return onednn.convolution(x, kernels)
    return copies(kernels) + _products(x, *kernels.shape[:2])


def map_gradient(grad: Tensor, x: Tensor, kernels: Tensor) -> int:
    """Bytes of `patches_gradient` with its gradient in channels_last."""
    if not fewer_products(x, kernels):
        return onednn.convolution_backward(grad, x, kernels, output_mask=(True, False, False))
    return copies(kernels) + _products(x, *kernels.shape[1::-1])


def weight_gradient(grad: Tensor, x: Tensor, kernels: Tensor) -> int:
    """Bytes of `kernels_gradients` for one x, beyond its result, with maps in channels_last."""
    if x.dtype == torch.bfloat16:  # by taps: two sets of maps, in three shifts each
        shifts = 1 + 2 * (x.shape[3] - 1) / x.shape[3]
        return int(shifts * (grad.nbytes + x.nbytes))
    if not fewer_products(x, kernels):
        return onednn.convolution_backward(grad, x, kernels, output_mask=(False, True, False))
    outputs, inputs = kernels.shape[:2]
    rows, _, parts = _rows(x)
    return 4 * (rows * (outputs + inputs) + parts * outputs * inputs)


def _products(x: Tensor, outputs: int, inputs: int) -> int:
    """Bytes of rows that are multiplied, of products and of combinations of kernels."""
    rows, products, parts = _rows(x)
    return 4 * (rows * inputs + products * outputs + parts * outputs * inputs)


def _rows(x: Tensor) -> tuple[int, int, int]:
    """Rows of one product of a group of maps, at the most; of all products across; how many of these there are."""
    batch, _, height, width = x.shape
    down, across = -(-height // 2), [-(-width // 2), *[width // 2] * 3, width % 2]
    group = min(batch, max(1, ROWS // (down * across[0])))
    return group * down * across[0], group * down * sum(across), sum(count > 0 for count in across)
