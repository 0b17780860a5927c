"""propagate and propagate_regions: schemas, public functions, fakes and gradients. Mathematics is in reference.py."""

from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..boxes import Boxes, sort_boxes
from ..checks import check, check_device, check_floats
from ..numerics import autocast, opmath_dtype
from . import reference
from .edges import EdgeSet


def propagate(x: Tensor, edges: EdgeSet, weight: Tensor, *, impl: str = "auto") -> Tensor:
    """Pass messages over the edges of a typed graph: the sum over edge types t of A_t x W_t.

    Accumulates in float32 (float64 for float64); in 16 bits, what products take and give is rounded to the dtype: the
    sums over edges, and the products that are added up. The formula is that of relational graph convolutions, as in
    Chen et al., CVPR 2018, section 3.2.

    Args:
        x: [N, D_in], or a batch [B, N, D_in] over one graph; float64, float32, bfloat16 or float16.
        edges: `EdgeSet` of N nodes and T types on the same device.
        weight: [T, D_in, D_out], of x's dtype. Under autocast both take its dtype.
        impl: "auto", or one of "cuda", "triton", "cpp", "reference".

    Returns:
        [N, D_out] or [B, N, D_out]; differentiable once in x and weight.

    Raises:
        ValueError: Other shapes, dtypes or devices.
        ImplementationUnavailable: `impl` is not there.
    """
    name = "propagate"
    x, weight = autocast(x, weight)
    check(
        x.dim() in (2, 3) and x.shape[-2] == edges.num_nodes,
        name,
        lambda: f"x must be [{edges.num_nodes}, D] or [B, {edges.num_nodes}, D], got {list(x.shape)}",
    )
    _check_weight(name, x, weight, edges.num_types)
    check_floats(name, x=x, weight=weight)
    check_device(name, x=x, edges=edges.indptr)
    chosen = dispatch.choose(name, impl, x.device.type)
    batch = x if x.dim() == 3 else x[None]
    out: Tensor = dispatch.overload(name, chosen)(batch, edges.tensors(), weight)
    return out if x.dim() == 3 else out[0]


def propagate_regions(
    x: Tensor,
    boxes: Boxes,
    ptr: Tensor | None,
    weight: Tensor,
    *,
    bandwidth: float | Tensor = 50.0,
    scale: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Pass messages between the regions of each image over five edge types that follow from their boxes.

    The sum over types of scale_t A_t x W_t. With ``kappa = exp(-|c_i - c_j| / bandwidth)`` of the centres,
    A_left[i, j] = kappa where c_j is left of c_i; right, above and below likewise; A_overlap[i, j] = IoU(i, j), j != i.
    Every row of every A_t is divided by its sum (rows of zeros stay zero). Regions of different images never see each
    other; boxes with a NaN or an infinity have no edges. A NaN in x may reach any region of its image. Accumulates in
    float32 (float64 for float64), and rounds in 16 bits as propagate does. After Chen et al., CVPR 2018, section 3.2.

    Args:
        x: [R, D_in], float64, float32, bfloat16 or float16, in the order of `boxes`.
        boxes: (x1, y1, x2, y2) of R regions, float32, in image pixels. One of
            [R, 4], sorted by image, with `ptr`: the form that costs nothing;
            a list of tensors [n, 4], one per image: copies the numbers of regions to the device;
            [R, 5] in any order, whose first column is the index of the image, as in torchvision's roi_align: is sorted,
            and x with it, on every call. An index keeps images apart and is not looked at otherwise.
        ptr: int64 [B + 1]; image b owns the regions ptr[b]:ptr[b + 1], possibly none. None for the other two forms. One
            that does not rise from 0 to R is a ValueError on a CPU; on a GPU it is not looked at, and regions that no
            image owns are not written.
        weight: [5, D_in, D_out], of x's dtype: left, right, above, below, overlap. Under autocast both take its dtype.
        bandwidth: Pixels over which the influence of a region falls to 1/e, above 0; a floating tensor [] on x's device
            may be learned, and its value is not looked at.
        scale: None, or a floating tensor [5], by which the types' weights are multiplied before they are rounded to
            weight's dtype; it may be learned.
        impl: "auto", or one of "cuda", "triton", "cpp", "reference".

    Returns:
        [R, D_out] in the order of `boxes`; differentiable once in x, weight, bandwidth and scale.

    Raises:
        ValueError: Other shapes, dtypes or devices, a number that is no bandwidth, or `ptr` beside boxes that say
            themselves which image owns them.
        ImplementationUnavailable: `impl` is not there.
    """
    name, types = "propagate_regions", len(reference.REGION_TYPES)
    _check_weight(name, x, weight, types)
    if scale is not None:
        check(
            scale.shape == (types,) and scale.is_floating_point(),
            name,
            lambda: f"scale must be floating [{types}], got {scale.dtype} {list(scale.shape)}",
        )
        check_device(name, scale=scale, weight=weight)
        weight = (weight * scale[:, None, None]).to(weight.dtype)
    x, weight = autocast(x, weight)
    check(x.dim() == 2, name, lambda: f"x must be [R, D], got {list(x.shape)}")
    regions = sort_boxes(name, boxes, ptr, x)
    count = regions.boxes.shape[0]
    check(x.shape[0] == count, name, lambda: f"{len(x)} rows of x, but {count} boxes")
    check_floats(name, x=x, weight=weight)
    acc_dtype = opmath_dtype(x.dtype)
    if isinstance(bandwidth, Tensor):
        given = bandwidth
        check(
            given.dim() == 0 and given.is_floating_point(),
            name,
            lambda: f"bandwidth must be a number or floating [], got {given.dtype} {list(given.shape)}",
        )
        bandwidth = given.to(acc_dtype)
    else:
        least = torch.finfo(acc_dtype).tiny
        check(bandwidth >= least, name, lambda: f"bandwidth must be positive, got {bandwidth}")
        bandwidth = torch.full((), bandwidth, dtype=acc_dtype, device=x.device)
    check_device(name, x=x, boxes=regions.boxes, ptr=regions.ptr, bandwidth=bandwidth)
    chosen = dispatch.choose(name, impl, x.device.type)
    out = dispatch.overload(name, chosen)(regions.sort(x), regions.boxes, regions.ptr, weight, bandwidth)
    return regions.restore(out)


def _check_weight(name: str, x: Tensor, weight: Tensor, types: int) -> None:
    check(
        weight.dim() == 3 and weight.shape[:2] == (types, x.shape[-1]),
        name,
        lambda: f"weight must be [{types}, {x.shape[-1]}, D_out], got {list(weight.shape)}",
    )


def _save(ctx: dispatch.Context, inputs: tuple[Any, ...], output: Any) -> None:
    x, edges, weight = inputs
    ctx.save_for_backward(x, weight, *edges)


def _gradient(op: dispatch.Operators, ctx: dispatch.Context, grad: Tensor) -> tuple[Any, ...]:
    x, weight, *edges = ctx.saved_tensors
    d_x, d_weight = op("propagate_backward")(grad, x, edges, weight)
    return d_x, [None] * len(edges), d_weight


def _save_regions(ctx: dispatch.Context, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _regions_gradient(op: dispatch.Operators, ctx: dispatch.Context, grad: Tensor) -> tuple[Any, ...]:
    d_x, d_weight, d_bandwidth = op("propagate_regions_backward")(grad, *ctx.saved_tensors, ctx.needs_input_grad[4])
    return d_x, None, None, d_weight, d_bandwidth


def _like(tensor: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)


dispatch.define(
    "propagate",
    "(Tensor x, Tensor[] edges, Tensor weight) -> Tensor",
    reference=reference.propagate,
    fake=lambda x, edges, weight: _like(x, *x.shape[:2], weight.shape[2]),
    backward=_gradient,
    save=_save,
    triton=".graph.triton",
)
dispatch.define(
    "propagate_backward",
    "(Tensor grad, Tensor x, Tensor[] edges, Tensor weight) -> (Tensor, Tensor)",
    reference=reference.propagate_backward,
    fake=lambda grad, x, edges, weight: (_like(x, *x.shape), _like(weight, *weight.shape)),
    triton=".graph.triton",
    public=False,
)
dispatch.define(
    "propagate_regions",
    "(Tensor x, Tensor boxes, Tensor ptr, Tensor weight, Tensor bandwidth) -> Tensor",
    reference=reference.propagate_regions,
    fake=lambda x, boxes, ptr, weight, bandwidth: _like(x, x.shape[0], weight.shape[2]),
    backward=_regions_gradient,
    save=_save_regions,
    triton=".graph.triton",
)
dispatch.define(
    "propagate_regions_backward",
    "(Tensor grad, Tensor x, Tensor boxes, Tensor ptr, Tensor weight, Tensor bandwidth, bool bandwidth_grad)"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference.propagate_regions_backward,
    fake=lambda grad, x, boxes, ptr, weight, bandwidth, bandwidth_grad: (
        _like(x, *x.shape),
        _like(weight, *weight.shape),
        _like(bandwidth),
    ),
    triton=".graph.triton",
    public=False,
)
