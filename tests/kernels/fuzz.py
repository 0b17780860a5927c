"""Random calls of crop_resize and paste_mean, what they must give, and the check of one; no test is run from here.

A scene is drawn from one source of integers: a seeded generator or Hypothesis. Its truth shares no code with the
library: positions in the precision in which kernels compute them, so that no decision (is a sample outside, is a cell
covered) is open to rounding, and all that follows in float64 over dense matrices.
"""

import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

import irnet_kernels
from irnet_kernels.testing import bits_equal
from tests.kernels.helpers import ragged

TOLERANCE = 1e-4
VANISHING = 1e-30  # what has less weight may be read or not: float32 may hold the weight as 0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
INF, NAN = math.inf, math.nan
log = logging.getLogger(__name__)  # the last line tells the scene in which a process died


@dataclass(frozen=True)
class Scene:
    """One call of each operator, forward and backward. `check(Scene(...), "cpp", "cpu")` makes it again."""

    counts: tuple[int, ...]  # regions of each image
    channels: int
    height: int
    width: int
    size: int
    border: str
    dtype: str
    layouts: tuple[str, ...]  # of maps, patches, gradient, boxes, ptr
    boxes: tuple[tuple[float, ...], ...]
    spoilt: int  # how many in a hundred elements of maps, patches and gradient are NaN or infinite
    seed: int  # of the values


def random_scene(seed: int, small: bool = False) -> Scene:
    return draw_scene(random.Random(seed).randint, small)


@st.composite
def scenes(draw, small: bool = False) -> Scene:
    return draw_scene(lambda low, high: draw(st.integers(low, high)), small)


def draw_scene(integer: Callable[[int, int], int], small: bool = False) -> Scene:
    """A scene; `integer(low, high)` draws from low .. high, and the lower the plainer. One dimension may be large.

    small  for Triton's interpreter, in which a program takes some milliseconds
    """

    def pick(options):
        return options[integer(0, len(options) - 1)]

    side, most = (4, 2) if small else (9, 4)
    large = "" if small else pick(("", "", "channels", "channels", "height", "width", "size", "regions"))
    counts = [integer(0, most) for _ in range(pick((1, 2, 3, 2, 1, 3, 2, 0)))]
    if large == "regions" and counts:
        counts[0] = integer(65, 80)
    height = integer(65, 80) if large == "height" else integer(1, side)
    width = integer(65, 80) if large == "width" else integer(1, side)
    size = pick((16, 15, 33)) if large == "size" else integer(1, side)
    channels = pick((31, 32, 33, 63, 64, 65, 100, 128, 129, 255, 300)) if large == "channels" else integer(0, 20)
    boxes: list[tuple[float, ...]] = []
    for _ in range(sum(counts)):
        if boxes and integer(0, 9) == 9:
            boxes.append(pick(boxes))
            continue
        (x1, x2), (y1, y2) = (draw_extent(integer, pick, cells, size) for cells in (width, height))
        boxes.append(tuple(float(np.float32(corner)) for corner in (x1, y1, x2, y2)))
    return Scene(
        counts=tuple(counts),
        channels=channels,
        height=height,
        width=width,
        size=size,
        border=pick(("zero", "clamp")),
        dtype=pick(tuple(DTYPES)),
        layouts=tuple(pick(LAYOUTS) for _ in range(5)),
        boxes=tuple(boxes),
        spoilt=pick((0, 0, 0, 0, 1, 3, 10)),
        seed=integer(0, 2**31 - 1),
    )


def draw_extent(integer, pick, cells: int, size: int) -> tuple[float, float]:
    """The edges of a box along one axis of a map."""

    def within() -> float:
        return integer(0, 999) / 999 * (cells - 1)

    def around() -> float:
        return integer(-500, 1500) / 999 * cells

    def nudged(value: float) -> float:
        """`value`, or a float32 close by."""
        for _ in range(abs(steps := integer(-2, 2))):
            value = np.nextafter(np.float32(value), np.float32(math.copysign(INF, steps)))
        return float(value)

    def at_border() -> float:
        return nudged(pick((0.0, -TOLERANCE, cells - 1.0, cells - 1 + TOLERANCE)))

    def at_cell() -> tuple[float, float]:
        # An edge so close to a cell that the cell's position on the patch is TOLERANCE outside.
        extent = integer(1, 8 * cells) / 8
        off = TOLERANCE * extent / max(1, size - 1)
        if pick((True, False)):
            return (low := nudged(integer(0, cells - 1) + off)), low + extent
        return (high := nudged(integer(0, cells - 1) - off)) - extent, high

    kinds = {
        "inside": lambda: (within(), within()),
        "around": lambda: (around(), around()),
        "on an eighth": lambda: (integer(-8, 8 * cells) / 8, integer(-8, 8 * cells) / 8),
        "on cells": lambda: (float(integer(-1, cells)), float(integer(-1, cells))),
        "at a border": lambda: (at_border(), pick((at_border, within, around))()),
        "at a cell": at_cell,
        "tiny": lambda: ((low := around()), low + 2.0 ** -integer(2, 30)),
        "flat": lambda: (pick((within, around))(),) * 2,
        "denormal": lambda: pick(((0.0, 1e-40), (-1e-42, 1e-42), (1e-45, 3e-45), (0.0, 1.2e-38))),
        "huge": lambda: (pick((-1e30, 3e38, -3.4e38, 1e8, -1e5)), pick((1e30, -3e38, 3.4e38, -1e8, 7.5, 1e5))),
        "endless": lambda: (around(), pick((INF, -INF, NAN))),
        "nothing": lambda: (pick((INF, -INF, NAN)), pick((INF, -INF, NAN))),
    }
    # Plain ones more often: a box is only as good as the worse of its axes.
    low, high = kinds[pick(("inside", *kinds, "around", "on an eighth", "at a cell", "inside", "around"))]()
    return (high, low) if integer(0, 3) == 3 else (low, high)


# -------------------------------------------------------------------------------------------------------------- layouts


def laid(values: Tensor, layout: str) -> Tensor:
    """The values in another layout of memory, with NaN in every gap; an expanded tensor repeats some of them."""
    gap = NAN if values.is_floating_point() else torch.iinfo(values.dtype).min
    maps = values.dim() == 4
    if layout == "channels_last" and maps:
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        return torch.stack([values, torch.full_like(values, gap)], dim=-1)[..., 0]
    if layout == "transposed" and values.dim() > 1:
        return values.mT.contiguous().mT
    if layout == "expanded" and maps:
        return values[:, :1].expand_as(values)
    if layout == "constant" and maps:
        return values.new_tensor(0.75).expand_as(values)  # the gradient of a sum
    if layout == "sliced" and maps:
        wider = values.new_full((len(values), values.shape[1] + 2, *values.shape[2:]), gap)
        wider = wider.contiguous(memory_format=torch.channels_last)
        wider[:, 1:-1] = values
        return wider[:, 1:-1]
    if layout == "shifted":
        # Packed, but not where an allocation starts.
        packed = values.permute(0, 2, 3, 1) if maps else values
        flat = torch.cat([values.new_full((1,), gap), packed.reshape(-1), values.new_full((1,), gap)])
        packed = flat[1:-1].view(packed.shape)
        return packed.permute(0, 3, 1, 2) if maps else packed
    return values.contiguous()


LAYOUTS = ("contiguous", "channels_last", "strided", "transposed", "expanded", "constant", "sliced", "shifted")


def storage(tensor: Tensor) -> Tensor:
    """All bytes that the tensor's memory holds, gaps included."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


# ---------------------------------------------------------------------------------------------------------------- truth


@dataclass(frozen=True)
class Truth:
    """What a result must be."""

    value: Tensor  # in float64
    bound: Tensor  # how far the sums of a kernel may be from it, before they are rounded to the result's dtype
    spoilt: Tensor  # the weight with which NaN and infinities enter


def hats(position: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Weights [..., cells] of positions [...] in float64, exact for the position; and which positions are inside."""
    inside = (position >= -TOLERANCE) & (position <= cells - 1 + TOLERANCE)
    at = torch.where(inside, position, 0).double().clamp(0, cells - 1)[..., None]
    low, cell = at.floor(), torch.arange(cells)
    weight = (1 - at + low) * (cell == low) + (at - low) * (cell == low + 1)
    return weight * inside[..., None], inside


def crop_weights(boxes: Tensor, size: int, cells: tuple[int, int], border: str) -> list[Tensor]:
    """[R, size, height] and [R, size, width]; positions are computed in the dtype of `boxes`."""
    weights = []
    steps = torch.arange(size, dtype=boxes.dtype) if size > 1 else torch.tensor([0.5], dtype=boxes.dtype)
    for axis, count in ((1, cells[0]), (0, cells[1])):
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        position = low + steps * ((high - low) / max(1, size - 1))
        if border == "clamp":
            position = torch.where(position.isfinite(), position.clamp(0, count - 1), position)
        weights.append(hats(position, count)[0])
    return weights


def paste_weights(boxes: Tensor, size: int, cells: tuple[int, int]) -> tuple[list[Tensor], list[Tensor]]:
    """[R, size, height] and [R, size, width]; and the rows and columns that are covered."""
    weights, covered = [], []
    for axis, count in ((1, cells[0]), (0, cells[1])):
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        extent = high - low
        position = (torch.arange(count, dtype=boxes.dtype) - low) / extent * (size - 1)
        position = torch.where(extent.isfinite() & (extent != 0), position, NAN)
        weight, inside = hats(position, size)
        weights.append(weight.mT)
        covered.append(inside)
    return weights, covered


def collect(maps: Tensor, owner: Tensor, wy: Tensor, wx: Tensor) -> Tensor:
    """[B, C, H, W] -> [R, C, P, P]; region r reads the image owner[r]."""
    return wy[:, None] @ maps[owner] @ wx[:, None].mT


def spread(patches: Tensor, owner: Tensor, wy: Tensor, wx: Tensor, images: int) -> Tensor:
    """[R, C, P, P] -> [B, C, H, W]."""
    spreads = wy[:, None].mT @ patches @ wx[:, None]
    return spreads.new_zeros(images, *spreads.shape[1:]).index_add(0, owner, spreads)


def weighted_sum(product: Callable[..., Tensor], values: Tensor, wy: Tensor, wx: Tensor, epsilon: float) -> Truth:
    """The truth of product(values, wy, wx), summed in a precision of `epsilon` in any order.

    A term carries the roundings of two weights and two products, each at most half an epsilon of the value, as no
    weight is above 1, and n terms make n - 1 sums. A whole epsilon for each leaves room for a division or two, for what
    is of second order, and for the truth's own roundings where it is no more precise.
    """
    finite = values.isfinite()
    clean = torch.where(finite, values, 0).double()
    touched = (wy > 0).double(), (wx > 0).double()
    terms = product(torch.ones_like(clean[:, :1]), *touched)
    bound = epsilon * (terms + 8) * product(clean.abs(), *touched)
    return Truth(product(clean, wy, wx), bound, product((~finite).double(), wy, wx))


# ---------------------------------------------------------------------------------------------------------------- check


def check(scene: Scene, impl: str, device: str) -> None:
    """Both operators with their gradients in `impl` on `device`; AssertionError names what is wrong."""
    log.info("check(%r, %r, %r)", scene, impl, device)
    dtype = DTYPES[scene.dtype]
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    epsilon = torch.finfo(exact).eps
    images, regions, cells = len(scene.counts), sum(scene.counts), (scene.height, scene.width)
    ptr = ragged(*scene.counts)
    boxes = torch.tensor(scene.boxes, dtype=torch.float32).reshape(-1, 4)
    owner = torch.arange(images).repeat_interleave(torch.tensor(scene.counts, dtype=torch.int64))
    # The reference multiplies with weights of 0, too: a NaN spreads there.
    spoilt = 0 if impl == "reference" else scene.spoilt
    generator = torch.Generator().manual_seed(scene.seed)
    shapes = [(images, scene.channels, *cells), (regions, scene.channels, scene.size, scene.size)]
    floats = [strewn(shape, dtype, spoilt, generator) for shape in (*shapes, shapes[0])]
    inputs = [laid(t.to(device), layout) for t, layout in zip((*floats, boxes, ptr), scene.layouts, strict=True)]
    maps, patches, grad = (t.cpu() for t in inputs[:3])
    untouched = [storage(t).clone() for t in inputs]

    # Both give a tensor of regions and one of images: what one operator reads is what its gradient writes.
    def crop(maps, patches, grad, boxes, ptr):
        leaf = maps.detach().requires_grad_()
        out = irnet_kernels.crop_resize(leaf, boxes, ptr, scene.size, border=scene.border, impl=impl)
        return out.detach(), torch.autograd.grad(out, leaf, patches)[0]

    def paste(maps, patches, grad, boxes, ptr):
        leaves = maps.detach().requires_grad_(), patches.detach().requires_grad_()
        out = irnet_kernels.paste_mean(*leaves, boxes, ptr, impl=impl)
        to_maps, to_patches = torch.autograd.grad(out, leaves, grad)
        assert bits_equal(to_maps, grad), "paste_mean: the gradient of the memory is not the gradient of the result"
        return to_patches, out.detach()

    wy, wx = crop_weights(boxes.to(exact), scene.size, cells, scene.border)
    out, gradient = twice(crop, inputs, scene, "crop_resize")
    judge(out, weighted_sum(lambda t, y, x: collect(t, owner, y, x), maps, wy, wx, epsilon), "crop_resize")
    truth = weighted_sum(lambda t, y, x: spread(t, owner, y, x, images), patches, wy, wx, epsilon)
    judge(gradient, truth, "crop_resize's gradient")

    if scene.size > 1:
        (wy, wx), (rows, columns) = paste_weights(boxes.to(exact), scene.size, cells)
        count = torch.zeros(images, *cells, dtype=torch.int64)
        count = count.index_add(0, owner, (rows[:, :, None] & columns[:, None, :]).long())[:, None]
        gradient, out = twice(paste, inputs, scene, "paste_mean")
        bare = (count == 0).expand_as(maps)
        assert bits_equal(out.cpu()[bare], maps[bare]), "paste_mean: a cell that nothing covers has changed"
        total = weighted_sum(lambda t, y, x: spread(t, owner, y, x, images), patches, wy, wx, epsilon)
        judge(out, mean_added(maps, total, count, epsilon), "paste_mean", where=~bare)
        share = grad.double() / count.clamp(min=1)
        truth = weighted_sum(lambda t, y, x: collect(t, owner, y, x), share, wy, wx, epsilon)
        judge(gradient, truth, "paste_mean's gradient")

    for tensor, before in zip(inputs, untouched, strict=True):
        assert torch.equal(storage(tensor), before), "an input was written to"


def strewn(shape: tuple[int, ...], dtype: torch.dtype, spoilt: int, generator: torch.Generator) -> Tensor:
    """Normal values; one in twenty is -0.0, `spoilt` in a hundred are infinite or NaN, some with bits of their own."""
    values = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    values[torch.rand(shape, generator=generator) < 0.05] = -0.0
    odd = torch.tensor([NAN, NAN, INF, -INF], dtype=dtype)
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    odd.view(whole)[1] += 5
    at = torch.rand(shape, generator=generator) < spoilt / 100
    values[at] = odd[torch.randint(len(odd), (int(at.sum()),), generator=generator)]
    return values


def mean_added(memory: Tensor, total: Truth, count: Tensor, epsilon: float) -> Truth:
    """memory + total / count."""
    finite = memory.isfinite()
    clean, count = torch.where(finite, memory, 0).double(), count.clamp(min=1)
    bound = total.bound / count + epsilon * clean.abs()
    return Truth(clean + total.value / count, bound, total.spoilt + (~finite).double())


def twice(call: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor], scene: Scene, name: str):
    """The results of a call. They have the same bits where fresh memory holds NaN, and for one image alone."""
    first = call(*inputs)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what is allocated
    try:
        second = call(*inputs)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(first, second, strict=True):
        assert a.dtype == inputs[0].dtype, f"{name}: {a.dtype}"
        assert a.is_contiguous(memory_format=torch.channels_last), f"{name}: strides {a.stride()}"
        assert bits_equal(a, b), f"{name}: the second call gives other bits"
    if scene.counts:
        image = scene.seed % len(scene.counts)
        at, start = slice(image, image + 1), sum(scene.counts[:image])
        own = slice(start, start + scene.counts[image])
        maps, patches, grad, boxes, ptr = inputs
        alone = call(maps[at], patches[own], grad[at], boxes[own], ptr[image : image + 2] - start)
        assert bits_equal(alone[0], first[0][own]), f"{name}: regions of image {image} alone have other bits"
        assert bits_equal(alone[1], first[1][at]), f"{name}: image {image} alone has other bits"
    return first


def judge(got: Tensor, truth: Truth, name: str, where: Tensor | None = None) -> None:
    """Every element is as close to the truth as its sum can be, rounded once, or is spoilt as it must be."""
    got, info = got.cpu(), torch.finfo(got.dtype)
    assert got.shape == truth.value.shape, f"{name}: {list(got.shape)} instead of {list(truth.value.shape)}"
    bound = truth.bound + info.eps / 2 * truth.value.abs() + info.smallest_normal * info.eps
    close = (got.double() - truth.value).abs() <= bound  # false for a NaN
    spoilt = truth.spoilt > VANISHING
    wrong = ~torch.where(spoilt, ~got.isfinite(), close | (truth.spoilt > 0) & ~got.isfinite())
    if where is not None:
        wrong &= where
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{name}: {int(wrong.sum())} of {wrong.numel()} elements are wrong, the first at {at}: "
            + f"{float(got[at])} instead of "
            + ("NaN or an infinity" if spoilt[at] else f"{float(truth.value[at])} +- {float(bound[at]):.1e}")
        )
