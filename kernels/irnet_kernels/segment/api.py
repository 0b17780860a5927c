"""segment_matmul and segment_outer: schemas, public functions, fakes and gradients, which are these operators again."""

import torch
from torch import Tensor

from .. import dispatch
from ..checks import check, check_device, check_floats, check_ptr
from ..numerics import autocast
from . import reference


def segment_matmul(x: Tensor, other: Tensor, ptr: Tensor, *, impl: str = "auto") -> Tensor:
    """Multiply the rows of every image with that image's own matrix, as PyG's segment_matmul does.

    x      [R, K], float64, float32, bfloat16 or float16
    other  [B, K, N], of x's dtype
    ptr    int64 [B + 1]; image b owns the rows ptr[b]:ptr[b + 1], possibly none
    impl   "auto", or one of "cuda", "triton", "cpp", "reference"
    Returns [R, N]: x[ptr[b]:ptr[b + 1]] @ other[b]. Differentiable any number of times in x and other. Under autocast
    both take its dtype. Accumulates in float32 (float64 for float64).

    Raises ValueError for other shapes, dtypes or devices, ImplementationUnavailable where `impl` is not there. A ptr
    that does not rise from 0 to R is a ValueError on a CPU; on a GPU it is not looked at, and rows that no image owns
    are not written.
    """
    name = "segment_matmul"
    x, other = autocast(x, other)
    check(
        x.dim() == 2 and other.dim() == 3 and other.shape[1] == x.shape[1],
        name,
        lambda: f"wants x [R, K] and other [B, K, N], got {list(x.shape)} and {list(other.shape)}",
    )
    check_floats(name, x=x, other=other)
    check_ptr(name, ptr, other.shape[0])
    check_device(name, x=x, ptr=ptr)
    return dispatch.overload(name, dispatch.choose(name, impl, x.device.type))(x, other, ptr)


def segment_outer(x: Tensor, y: Tensor, ptr: Tensor, *, impl: str = "auto") -> Tensor:
    """Of every image the sum over its rows of the outer product of x's row and y's row.

    x     [R, K], float64, float32, bfloat16 or float16
    y     [R, N], of x's dtype
    ptr   int64 [B + 1]; image b owns the rows ptr[b]:ptr[b + 1], possibly none
    impl  "auto", or one of "cuda", "triton", "cpp", "reference"
    Returns [B, K, N]: x[ptr[b]:ptr[b + 1]].T @ y[ptr[b]:ptr[b + 1]], zero for an image without rows. Differentiable any
    number of times in x and y. Under autocast both take its dtype. Accumulates in float32 (float64 for float64).

    Raises ValueError for other shapes, dtypes or devices, ImplementationUnavailable where `impl` is not there. A ptr
    that does not rise from 0 to R is a ValueError on a CPU; on a GPU it is not looked at, and rows that no image owns
    count for nothing.
    """
    name = "segment_outer"
    x, y = autocast(x, y)
    check(
        x.dim() == y.dim() == 2 and x.shape[0] == y.shape[0],
        name,
        lambda: f"wants x [R, K] and y [R, N], got {list(x.shape)} and {list(y.shape)}",
    )
    check_floats(name, x=x, y=y)
    check_ptr(name, ptr)
    check_device(name, x=x, ptr=ptr)
    return dispatch.overload(name, dispatch.choose(name, impl, x.device.type))(x, y, ptr)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _matmul_gradient(op, ctx, grad: Tensor):
    x, other, ptr = ctx.saved_tensors
    d_x = op("segment_matmul")(grad, other.mT, ptr) if ctx.needs_input_grad[0] else None
    d_other = op("segment_outer")(x, grad, ptr) if ctx.needs_input_grad[1] else None
    return d_x, d_other, None


def _outer_gradient(op, ctx, grad: Tensor):
    x, y, ptr = ctx.saved_tensors
    d_x = op("segment_matmul")(y, grad.mT, ptr) if ctx.needs_input_grad[0] else None
    d_y = op("segment_matmul")(x, grad, ptr) if ctx.needs_input_grad[1] else None
    return d_x, d_y, None


dispatch.define(
    "segment_matmul",
    "(Tensor x, Tensor other, Tensor ptr) -> Tensor",
    reference=reference.segment_matmul,
    fake=lambda x, other, ptr: torch.empty((x.shape[0], other.shape[2]), dtype=x.dtype, device=x.device),
    backward=_matmul_gradient,
    save=_save,
    triton=".segment.triton",
)
dispatch.define(
    "segment_outer",
    "(Tensor x, Tensor y, Tensor ptr) -> Tensor",
    reference=reference.segment_outer,
    fake=lambda x, y, ptr: torch.empty((ptr.shape[0] - 1, x.shape[1], y.shape[1]), dtype=x.dtype, device=x.device),
    backward=_outer_gradient,
    save=_save,
    triton=".segment.triton",
)
