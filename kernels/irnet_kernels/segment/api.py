"""segment_matmul and segment_outer: schemas, public functions, fakes and gradients, which are these operators again."""

import torch
from torch import Tensor

from .. import dispatch
from ..checks import check, check_device, check_floats, check_ptr
from ..numerics import autocast
from . import reference


def segment_matmul(inputs: Tensor, ptr: Tensor, other: Tensor, *, impl: str = "auto") -> Tensor:
    """Multiply the rows of every image with that image's own matrix, as PyG's segment_matmul does.

    Accumulates in float32 (float64 for float64).

    Args:
        inputs: [R, K], float64, float32, bfloat16 or float16.
        ptr: int64 [B + 1]; image b owns the rows ptr[b]:ptr[b + 1], possibly none. One that does not rise from 0 to R
            is a ValueError on a CPU; on a GPU it is not looked at, and rows that no image owns are not written.
        other: [B, K, N], of the inputs' dtype. Under autocast both take its dtype.
        impl: "auto", or one of "cuda", "triton", "cpp", "reference".

    Returns:
        [R, N]: inputs[ptr[b]:ptr[b + 1]] @ other[b]; differentiable any number of times in inputs and other.

    Raises:
        ValueError: Other shapes, dtypes or devices.
        ImplementationUnavailable: `impl` is not there.
    """
    name = "segment_matmul"
    inputs, other = autocast(inputs, other)
    check(
        inputs.dim() == 2 and other.dim() == 3 and other.shape[1] == inputs.shape[1],
        name,
        lambda: f"inputs must be [R, K] and other [B, K, N], got {list(inputs.shape)} and {list(other.shape)}",
    )
    check_floats(name, inputs=inputs, other=other)
    check_ptr(name, ptr, other.shape[0])
    check_device(name, inputs=inputs, ptr=ptr)
    return dispatch.overload(name, dispatch.choose(name, impl, inputs.device.type))(inputs, other, ptr)


def segment_outer(inputs: Tensor, ptr: Tensor, other: Tensor, *, impl: str = "auto") -> Tensor:
    """Sum over the rows of every image the outer products of a row of `inputs` and the same row of `other`.

    Accumulates in float32 (float64 for float64).

    Args:
        inputs: [R, K], float64, float32, bfloat16 or float16.
        ptr: int64 [B + 1]; image b owns the rows ptr[b]:ptr[b + 1], possibly none. One that does not rise from 0 to R
            is a ValueError on a CPU; on a GPU it is not looked at, and rows that no image owns count for nothing.
        other: [R, N], of the inputs' dtype. Under autocast both take its dtype.
        impl: "auto", or one of "cuda", "triton", "cpp", "reference".

    Returns:
        [B, K, N]: inputs[ptr[b]:ptr[b + 1]].T @ other[ptr[b]:ptr[b + 1]], zero for an image without rows;
        differentiable any number of times in inputs and other.

    Raises:
        ValueError: Other shapes, dtypes or devices.
        ImplementationUnavailable: `impl` is not there.
    """
    name = "segment_outer"
    inputs, other = autocast(inputs, other)
    check(
        inputs.dim() == other.dim() == 2 and inputs.shape[0] == other.shape[0],
        name,
        lambda: f"inputs must be [R, K] and other [R, N], got {list(inputs.shape)} and {list(other.shape)}",
    )
    check_floats(name, inputs=inputs, other=other)
    check_ptr(name, ptr)
    check_device(name, inputs=inputs, ptr=ptr)
    return dispatch.overload(name, dispatch.choose(name, impl, inputs.device.type))(inputs, other, ptr)


# The schemas keep the matrix before ptr: the native implementations are registered by position.


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
