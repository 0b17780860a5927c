"""What an operator takes on a CPU beside its arguments and results, by formulas: nothing is allocated or computed.

A tracker of tensors sees none of it. The formulas of irnet's own operators follow their bindings in csrc/bindings;
those of PyTorch's convolutions were read off its allocator (oneDNN on a processor with AVX-512, PyTorch 2.13): they
leave out what oneDNN takes for each thread, some hundred KB. On a GPU what cuDNN takes is its own choice.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .convolution.workspace import conv3x3, conv3x3_backward, copies
from .gru.workspace import conv_gru, conv_gru_backward
from .onednn import convolution, convolution_backward

ROWS = 1024  # kRows of csrc/bindings/graph.cpp: so many rows' sums over edges are there at once
REGION_BYTES = 128  # of a region, as csrc/cpu/graph_kernel.cpp keeps it


def workspace(operator: torch._ops.OpOverload, arguments: Sequence[Any]) -> int:
    """The bytes that a call allocates and frees again, at the most, beyond its results.

    Args:
        operator: One of PyTorch's or irnet's, on a CPU.
        arguments: Of the call; of tensors only their shapes, dtypes and layouts are looked at.

    Returns:
        0 for an operator of which no formula is known.
    """
    formula = _FORMULAS.get(operator.name())
    return formula(*arguments) if formula else 0


def _convolution(x: Tensor, kernels: Tensor, *rest: Any) -> int:
    return convolution(x, kernels, strided=max(rest[1]) > 1)


def _convolution_backward(grad: Tensor, x: Tensor, kernels: Tensor, *rest: Any) -> int:
    return convolution_backward(grad, x, kernels, strided=max(rest[1]) > 1, output_mask=rest[-1])


def _reduced(x: Tensor, *rest: Any) -> int:
    """Sums of 16 bits are made of a copy in float32."""
    return 4 * x.numel() if x.element_size() == 2 else 0


def _edges(rows: int, types: int, channels: int, itemsize: int) -> int:
    """All types' sums over edges of as many rows as are multiplied at once."""
    return min(ROWS, rows) * types * channels * itemsize


def _propagate(x: Tensor, *rest: Any) -> int:
    return _edges(x.shape[0] * x.shape[1], rest[-1].shape[0], x.shape[2], x.element_size())


def _propagate_backward(grad: Tensor, x: Tensor, *rest: Any) -> int:
    return _propagate(grad, *rest) + _widened(rest[-1])


def _regions(x: Tensor, boxes: Tensor, ptr: Tensor, weight: Tensor, *rest: Any) -> int:
    # Groups of whole images: with the last one of a group there may be more rows than ROWS.
    rows = min(x.shape[0], ROWS + x.shape[0] // max(1, len(ptr) - 1))
    return len(boxes) * REGION_BYTES + rows * weight.shape[0] * x.shape[1] * x.element_size()


def _regions_backward(grad: Tensor, x: Tensor, boxes: Tensor, ptr: Tensor, weight: Tensor, *rest: Any) -> int:
    return _regions(grad, boxes, ptr, weight) + _widened(weight)


def _widened(weight: Tensor) -> int:
    """The gradient of weights of 16 bits is summed in float32."""
    return 4 * weight.numel() if weight.element_size() == 2 else 0


_FORMULAS: dict[str, Callable[..., int]] = {
    "aten::convolution": _convolution,
    "aten::convolution_backward": _convolution_backward,
    "aten::mean.dim": _reduced,
    "irnet::conv3x3.cpp": conv3x3,
    "irnet::conv3x3_backward.cpp": conv3x3_backward,
    "irnet::conv_gru.cpp": conv_gru,
    "irnet::conv_gru_backward.cpp": conv_gru_backward,
    "irnet::crop_resize.cpp": lambda features, *rest: copies(features),
    "irnet::crop_resize_backward.cpp": lambda grad, *rest: copies(grad),
    "irnet::paste_mean.cpp": lambda memory, patches, *rest: copies(memory, patches),
    "irnet::paste_mean_backward.cpp": lambda grad, *rest: copies(grad),
    "irnet::propagate.cpp": _propagate,
    "irnet::propagate_backward.cpp": _propagate_backward,
    "irnet::propagate_regions.cpp": _regions,
    "irnet::propagate_regions_backward.cpp": _regions_backward,
}
