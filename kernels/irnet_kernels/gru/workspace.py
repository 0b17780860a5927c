"""What conv_gru and its gradient take on a CPU beside arguments and results: csrc/bindings/gru.cpp and convolution.cpp
in bytes, step by step. Nothing is allocated or computed here.

The steps are those of a processor with AVX-512 and without AMX: with AMX, conv_gru leaves the products of its gates in
bfloat16 to oneDNN, of which these formulas know nothing.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import onednn
from ..convolution.workspace import convolve, copies, map_gradient, weight_gradient

NEW_X, NEW_H, RESET_X = 0, 1, 2  # in the order of ConvGRUWeights
COLUMNS = 18  # cpu::kColumns: the taps of both gates


class Sizes(NamedTuple):
    """Bytes of what both directions hold."""

    patches: int  # [R, C, P, P]
    kernels: int  # [C, C, 3, 3]
    gates: int  # [R, G, P, P]
    converted: int  # of arguments that are brought into another layout or dtype first
    rows: int  # R P P
    itemsize: int  # of the dtype in which it computes
    wide: bool  # a gate of every channel


def conv_gru(inputs: Tensor, state: Tensor, weights: list[Tensor]) -> int:
    """Bytes of `irnet::conv_gru.cpp`."""
    s = _sizes((inputs, state), weights)
    x, kernels = _computed(inputs, s), _computed(weights[NEW_X], s)
    if s.itemsize == 2:  # one convolution of both inputs: they and the kernels are joined
        joined, both = (t.new_empty((t.shape[0], 2 * t.shape[1], *t.shape[2:])) for t in (x, kernels))
        joined = joined.to(memory_format=torch.channels_last)
        return s.converted + 2 * s.patches + 2 * s.kernels + onednn.convolution(joined, both)
    # The state behind its gate and, of a result that another dtype shall have, this one.
    held = s.patches + (2 * s.patches + 2 * s.gates if inputs.element_size() != s.itemsize else 0)
    gates = COLUMNS * s.rows * s.itemsize if not s.wide else 0
    return s.converted + max(held + convolve(x, kernels), gates)


def conv_gru_backward(
    grad: Tensor, inputs: Tensor, state: Tensor, weights: list[Tensor], new: Tensor, reset: Tensor, update: Tensor
) -> int:
    """Bytes of `irnet::conv_gru_backward.cpp`."""
    s = _sizes((grad, inputs, state, new, reset, update), weights)
    x, kernels = _computed(inputs, s), _computed(weights[NEW_X], s)
    results = 2 * s.patches + 2 * s.kernels  # made one after the other, of which these are the large ones
    gates = s.gates * 4 // s.itemsize
    held = s.patches + gates  # the candidate's and the update gate's gradients before their functions
    stages = [
        held + s.patches + 2 * s.kernels + weight_gradient(x, x, kernels),
        held + 2 * s.kernels + 2 * s.patches + map_gradient(x, x, kernels),
        held + results + s.kernels,  # in the layout of the weights
    ]
    if s.wide:
        # The gates' kernels are results, too, and their gradients are added up.
        results += 4 * s.kernels
        stages = [stage + 2 * gates + 4 * s.kernels + 2 * s.patches for stage in stages]
    else:
        products = COLUMNS * x.shape[1] * x.shape[0] * 4 if s.itemsize == 4 else 0
        stages.append(held + results + gates + COLUMNS * s.rows * s.itemsize + products)
    if inputs.element_size() != s.itemsize:
        results //= 2
    return s.converted + max(stages) - results


def _sizes(maps: tuple[Tensor, ...], weights: list[Tensor]) -> Sizes:
    x, kernels, wide = maps[0], weights[NEW_X], weights[RESET_X].shape[0] > 1
    itemsize = 8 if x.element_size() == 8 else 4
    if x.dtype == torch.bfloat16 and not wide and _multiplies_bfloat16():
        itemsize = 2
    converted = copies(*maps)
    if itemsize != x.element_size():
        converted = sum(t.numel() for t in (*maps, *weights)) * itemsize
    gates = weights[RESET_X].shape[0] * x.numel() // x.shape[1] * itemsize
    rows = x.numel() // x.shape[1]
    return Sizes(x.numel() * itemsize, kernels.numel() * itemsize, gates, converted, rows, itemsize, wide)


def _multiplies_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported()


def _computed(t: Tensor, s: Sizes) -> Tensor:
    """A tensor of these sizes in the dtype in which the call computes, on no device; patches are in channels_last."""
    dtype = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[s.itemsize]
    tensor = torch.empty(t.shape, dtype=dtype, device="meta")
    return tensor if t.shape[2] == 3 and t.shape[0] == t.shape[1] else tensor.to(memory_format=torch.channels_last)
