"""crop_resize and paste_mean: schemas, public functions, fakes and gradients. Their mathematics is in reference.py."""

from torch import Tensor

from .. import dispatch
from ..boxes import Boxes, sort_boxes
from ..checks import check, check_device, check_floats
from ..numerics import autocasting, empty_map
from . import reference

BORDERS = ("zero", "clamp")


def crop_resize(
    features: Tensor,
    boxes: Boxes,
    ptr: Tensor | None = None,
    size: int = 7,
    *,
    border: str = "zero",
    spatial_scale: float = 1.0,
    impl: str = "auto",
) -> Tensor:
    """Sample a `size` x `size` patch of every region from its image's feature map, bilinearly.

    Row i lies at y = y1 + i (y2 - y1) / (size - 1), columns likewise; size 1 samples the centre. This is TensorFlow's
    crop_and_resize. Samples up to 1e-4 cells outside count as on the border; samples at a NaN or infinite position are
    zero. Accumulates in float32 (float64 for float64). An infinite or NaN feature reaches the samples that touch its
    cell; in the reference, which multiplies by zero weights, others of its image, too.

    Args:
        features: [B, C, H, W], float64, float32, bfloat16 or float16; channels_last is the fast layout.
        boxes: (x1, y1, x2, y2) of R regions, float32, in feature cells where `spatial_scale` is 1. One of
            [R, 4], sorted by image, with `ptr`: the form that costs nothing;
            a list of B tensors [n, 4], one per image: copies the numbers of regions to the device;
            [R, 5] in any order, whose first column is the index of the image, as in torchvision's roi_align: is sorted
            on every call. Every index must be in [0, B): a ValueError on a CPU; on a GPU it is not looked at, and the
            patches of other images are zero.
        ptr: int64 [B + 1]; image b owns the regions ptr[b]:ptr[b + 1], possibly none. None for the other two forms.
        size: Samples per side, at least 1.
        border: What a sample outside [0, H - 1] x [0, W - 1] is: "zero", or "clamp" for the nearest border sample.
        spatial_scale: Cells per unit of `boxes`, by which they are multiplied: 1 / stride for boxes in pixels.
        impl: "auto", or one of "cuda", "triton", "cpp", "reference".

    Returns:
        [R, C, size, size] in the order of `boxes`, in channels_last and the dtype of `features`; differentiable in
        `features` any number of times.

    Raises:
        ValueError: Other shapes, dtypes or devices (native kernels also beyond 2^24 rows or columns), or `ptr` beside
            boxes that say themselves which image owns them.
        ImplementationUnavailable: `impl` is not there.
    """
    name = "crop_resize"
    check(features.dim() == 4, name, lambda: f"features must be [B, C, H, W], got {list(features.shape)}")
    check_floats(name, features=features)
    regions = sort_boxes(name, boxes, ptr, features, features.shape[0], spatial_scale)
    check_device(name, features=features, boxes=regions.boxes, ptr=regions.ptr)
    check(size >= 1, name, lambda: f"size must be at least 1, got {size}")
    check(border in BORDERS, name, lambda: f"border must be one of {BORDERS}, got {border!r}")
    chosen = dispatch.choose(name, impl, features.device.type)
    return regions.restore(dispatch.overload(name, chosen)(features, regions.boxes, regions.ptr, size, border))


def paste_mean(
    memory: Tensor,
    patches: Tensor,
    boxes: Boxes,
    ptr: Tensor | None = None,
    *,
    spatial_scale: float = 1.0,
    impl: str = "auto",
) -> Tensor:
    """Add to every cell of the memory the mean of the patches whose regions cover it.

    Cell (v, u) reads patch row (v - y1) / (y2 - y1) (P - 1), its column likewise, bilinearly, if both lie within
    [0, P - 1], give or take 1e-4; else the region does not cover it. Boxes of zero or infinite extent, or with a NaN,
    cover nothing; cells that nothing covers keep their memory. Nothing of size R x C x H x W is ever made. After Chen
    et al., CVPR 2018, section 3.1.

    Args:
        memory: [B, C, H, W], float64, float32, bfloat16 or float16; channels_last is the fast layout.
        patches: [R, C, P, P] with P at least 2, of the memory's dtype (under autocast it is cast to it), in the order
            of `boxes`.
        boxes: (x1, y1, x2, y2) of R regions, float32, in memory cells where `spatial_scale` is 1. One of
            [R, 4], sorted by image, with `ptr`: the form that costs nothing;
            a list of B tensors [n, 4], one per image: copies the numbers of regions to the device;
            [R, 5] in any order, whose first column is the index of the image, as in torchvision's roi_align: is sorted,
            and the patches with it, on every call. Every index must be in [0, B): a ValueError on a CPU; on a GPU it
            is not looked at, and regions of other images cover nothing.
        ptr: int64 [B + 1]; image b owns the regions ptr[b]:ptr[b + 1], possibly none. None for the other two forms.
        spatial_scale: Cells per unit of `boxes`, by which they are multiplied: 1 / stride for boxes in pixels.
        impl: "auto", or one of "cuda", "triton", "cpp", "reference".

    Returns:
        A tensor like `memory`, in channels_last; differentiable in `memory` and `patches` any number of times.

    Raises:
        ValueError: Other shapes, dtypes or devices, or `ptr` beside boxes that say themselves which image owns them.
        ImplementationUnavailable: `impl` is not there.
    """
    name = "paste_mean"
    if autocasting(memory.device.type):
        patches = patches.to(memory.dtype)
    check(memory.dim() == 4, name, lambda: f"memory must be [B, C, H, W], got {list(memory.shape)}")
    check(
        patches.dim() == 4 and patches.shape[2] == patches.shape[3] >= 2 and patches.shape[1] == memory.shape[1],
        name,
        lambda: f"patches must be [R, {memory.shape[1]}, P, P] with P at least 2, got {list(patches.shape)}",
    )
    check_floats(name, memory=memory, patches=patches)
    regions = sort_boxes(name, boxes, ptr, memory, memory.shape[0], spatial_scale)
    count = regions.boxes.shape[0]
    check(patches.shape[0] == count, name, lambda: f"{len(patches)} patches, but {count} boxes")
    check_device(name, memory=memory, boxes=regions.boxes, ptr=regions.ptr)
    chosen = dispatch.choose(name, impl, memory.device.type)
    return dispatch.overload(name, chosen)(memory, regions.sort(patches), regions.boxes, regions.ptr)


# The two operators and their gradients are linear in maps and patches, and each is the adjoint of another: crop_resize
# of crop_resize_backward, paste_mean's patch path of paste_mean_backward.


def _save_crop(ctx, inputs, output) -> None:
    features, boxes, ptr, size, border = inputs
    ctx.save_for_backward(boxes, ptr)
    ctx.size, ctx.border, ctx.shape = size, border, features.shape[2:]


def _crop_gradient(op, ctx, grad: Tensor):
    boxes, ptr = ctx.saved_tensors
    return op("crop_resize_backward")(grad, boxes, ptr, *ctx.shape, ctx.border), None, None, None, None


def _save_crop_backward(ctx, inputs, output) -> None:
    grad, boxes, ptr, _, _, border = inputs
    ctx.save_for_backward(boxes, ptr)
    ctx.size, ctx.border = grad.shape[-1], border


def _crop_second_gradient(op, ctx, grad: Tensor):
    boxes, ptr = ctx.saved_tensors
    return op("crop_resize")(grad, boxes, ptr, ctx.size, ctx.border), None, None, None, None, None


def _save_paste(ctx, inputs, output) -> None:
    _, patches, boxes, ptr = inputs
    ctx.save_for_backward(boxes, ptr)
    ctx.size = patches.shape[-1]


def _paste_gradient(op, ctx, grad: Tensor):
    boxes, ptr = ctx.saved_tensors
    patches = op("paste_mean_backward")(grad, boxes, ptr, ctx.size) if ctx.needs_input_grad[1] else None
    return grad, patches, None, None


def _save_paste_backward(ctx, inputs, output) -> None:
    grad, boxes, ptr, _ = inputs
    ctx.save_for_backward(boxes, ptr)
    ctx.shape = grad.shape


def _paste_second_gradient(op, ctx, grad: Tensor):
    boxes, ptr = ctx.saved_tensors
    return op("paste_mean")(grad.new_zeros(ctx.shape), grad, boxes, ptr), None, None, None


dispatch.define(
    "crop_resize",
    "(Tensor features, Tensor boxes, Tensor ptr, SymInt size, str border) -> Tensor",
    reference=reference.crop_resize,
    triton=".roi.triton",
    fake=lambda features, boxes, ptr, size, border: empty_map(
        features, (boxes.shape[0], features.shape[1], size, size)
    ),
    backward=_crop_gradient,
    save=_save_crop,
)
dispatch.define(
    "crop_resize_backward",
    "(Tensor grad, Tensor boxes, Tensor ptr, SymInt height, SymInt width, str border) -> Tensor",
    reference=reference.crop_resize_backward,
    triton=".roi.triton",
    fake=lambda grad, boxes, ptr, height, width, border: empty_map(
        grad, (ptr.shape[0] - 1, grad.shape[1], height, width)
    ),
    backward=_crop_second_gradient,
    save=_save_crop_backward,
    public=False,
)
dispatch.define(
    "paste_mean",
    "(Tensor memory, Tensor patches, Tensor boxes, Tensor ptr) -> Tensor",
    reference=reference.paste_mean,
    triton=".roi.triton",
    fake=lambda memory, patches, boxes, ptr: empty_map(memory, memory.shape),
    backward=_paste_gradient,
    save=_save_paste,
)
dispatch.define(
    "paste_mean_backward",
    "(Tensor grad, Tensor boxes, Tensor ptr, SymInt size) -> Tensor",
    reference=reference.paste_mean_backward,
    triton=".roi.triton",
    fake=lambda grad, boxes, ptr, size: empty_map(grad, (boxes.shape[0], grad.shape[1], size, size)),
    backward=_paste_second_gradient,
    save=_save_paste_backward,
    public=False,
)
