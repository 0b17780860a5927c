"""propagate, propagate_regions and their gradients in Triton, for GPUs where nobody compiled anything. Nothing of
PyTorch's dispatcher lives here: library.py registers the launchers.

Kernels make the sums over edges of all types, [rows, types * channels] in memory; the products with the weights of all
types are one product of PyTorch's. dx is the same over transposed edges and with transposed weights, and the sums that
it is made of give the weights' gradient, too: (A_t x)' g = x' (A_t' g). So nothing is kept but the inputs, one buffer
of sums exists at a time, and backward makes them once.

There are no atomics, nothing is read on the host. Sums go in an order that follows from the shapes and `ptr` alone.
"""

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from irnet_kernels.library import accumulator  # absolute: this file also runs as a copy outside of its package

GROUP = 16384  # rows of the buffer of sums that images of a batch share; one image has as many as it needs
# What is launched, by the bytes of the dtype; nothing is tuned at run time.
EDGES = tl.constexpr(8)  # rows that are on their way from memory at the same time
CHANNELS = {2: (512, 2), 4: (512, 4), 8: (256, 4)}  # of a program of propagate, and its warps: 16 bytes a lane

TRITON_NAMES = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16"}
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


# Parts that kernels share


@triton.jit
def _rounded(value, dtype: tl.constexpr):
    """In the output's dtype, rounded to nearest even; Triton's interpreter would cut a bfloat16's bits off."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        bits = tl.where(value == value, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        rounded = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        rounded = value.to(dtype)
    return rounded


# Edges that are given


@triton.jit(do_not_specialize=("nodes", "types"))
def propagate_kernel(
    x, indptr, indices, values, out, nodes, types, channels,
    REAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program makes the sum over the edges of one type into one node of one image, in the order of the edges."""
    program = tl.program_id(0)
    node, kind = program // types % nodes, program % types
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    source = x + (program // types // nodes).to(tl.int64) * nodes * channels + channel
    row = indptr + kind * nodes + node
    first, last = tl.load(row), tl.load(row + 1)
    total = tl.zeros((BLOCK,), REAL)
    for edge in range(first, last, EDGES):
        for step in tl.static_range(EDGES):
            there = edge + step < last
            neighbour = tl.load(indices + edge + step, mask=there, other=0).to(tl.int64)
            weight = tl.load(values + edge + step, mask=there, other=0.0).to(REAL)
            total += weight * tl.load(source + neighbour * channels, mask=inside & there, other=0.0).to(REAL)
    target = out + program.to(tl.int64) * channels + channel
    tl.store(target, _rounded(total, out.dtype.element_ty), mask=inside)


# Launchers, with the operators' own signatures


def propagate(
    x: Tensor,
    indptr: Tensor,
    indices: Tensor,
    values: Tensor,
    t_indptr: Tensor,
    t_indices: Tensor,
    t_values: Tensor,
    weight: Tensor,
) -> Tensor:
    images, nodes, _ = x.shape
    x, edges, stacked = x.contiguous(), (indptr, indices, values), weight.flatten(0, 1)
    out = x.new_empty((images, nodes, weight.shape[2]))
    for some in _groups(images, nodes):
        out[some].flatten(0, 1).copy_(_product(_sums(x[some], edges, len(weight)), stacked))
    return out


def propagate_backward(
    grad: Tensor,
    x: Tensor,
    indptr: Tensor,
    indices: Tensor,
    values: Tensor,
    t_indptr: Tensor,
    t_indices: Tensor,
    t_values: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor]:
    images, nodes, channels = x.shape
    x, grad, edges = x.contiguous(), grad.contiguous(), (t_indptr, t_indices, t_values)
    stacked = weight.mT.flatten(0, 1)
    d_x = torch.empty_like(x)
    d_weight = x.new_zeros((channels, len(stacked)), dtype=accumulator(x.dtype))
    for some in _groups(images, nodes):
        sums = _sums(grad[some], edges, len(weight))
        d_x[some].flatten(0, 1).copy_(_product(sums, stacked))
        d_weight += _product(x[some].flatten(0, 1).T, sums)
    return d_x, _by_type(d_weight, weight)


def _groups(images: int, nodes: int) -> Iterator[slice]:
    """Images whose sums are made and multiplied together."""
    most = max(GROUP // max(nodes, 1), 1)
    return (slice(first, min(first + most, images)) for first in range(0, images, most))


def _sums(x: Tensor, edges: tuple[Tensor, Tensor, Tensor], types: int) -> Tensor:
    """A_t x of all types t, [images * nodes, types * channels], for edges in CSR."""
    images, nodes, channels = x.shape
    out = x.new_empty((images * nodes, types * channels))
    if out.numel():
        constants, options = _constants(x.dtype, channels)
        grid = (images * nodes * types, triton.cdiv(channels, constants["BLOCK"]))
        indptr, indices, values = (t.contiguous() for t in edges)
        propagate_kernel[grid](x, indptr, indices, values, out, nodes, types, channels, **constants, **options)
    return out


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, summed in float32 and not rounded to another dtype (float64 for float64), whatever autocast says."""
    real = accumulator(a.dtype)
    with torch.autocast(a.device.type, enabled=False):
        if a.dtype == real:
            return torch.mm(a, b)
        return torch.mm(a, b, out_dtype=real) if a.is_cuda else torch.mm(a.to(real), b.to(real))


def _by_type(stacked: Tensor, weight: Tensor) -> Tensor:
    """The weights' gradient [types, channels, outputs] of one that is [channels, types * outputs]."""
    gradient = stacked.view(weight.transpose(0, 1).shape).transpose(0, 1)
    return torch.empty_like(weight, memory_format=torch.contiguous_format).copy_(gradient)


def _constants(dtype: torch.dtype, channels: int) -> tuple[dict, dict]:
    """Compile-time arguments of propagate_kernel, and how it is compiled; a block is no larger than it need be."""
    block, warps = CHANNELS[dtype.itemsize]
    constants = {
        "REAL": tl.float64 if dtype == torch.float64 else tl.float32,
        "BLOCK": min(block, triton.next_power_of_2(channels)),
    }
    return constants, {"num_warps": warps, "num_stages": 1}


def kernels(channels: int = 512, dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16)) -> list[dict]:
    """Every kernel as it is launched for x of these dtypes: the fields of irnet.bench.compiled.TritonKernel."""
    shipped = []
    for dtype in dtypes:
        constants, options = _constants(dtype, channels)
        types = {"indptr": "*i64", "indices": "*i32", "values": "*fp32"}
        types |= dict.fromkeys(("nodes", "types", "channels"), "i32")
        rows = TRITON_NAMES[dtype]
        types = {name: types.get(name, rows) for name in propagate_kernel.arg_names if name not in constants}
        arguments = {"function": propagate_kernel, "types": types, "constexprs": constants}
        shipped.append(arguments | {"multiples_of_16": ("channels",)} | options)
    return shipped
