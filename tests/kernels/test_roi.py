"""crop_resize and paste_mean against scalar loops, grid_sample and each other's adjoint; boxes of every odd kind."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import grid_sample

from irnet_kernels import crop_resize, paste_mean
from irnet_kernels.roi.reference import coverage
from irnet_kernels.testing import bits_equal
from tests.kernels import oracles
from tests.kernels.helpers import (
    assert_exact,
    assert_rounded_once,
    box_grid,
    drawn,
    each_device,
    each_dtype,
    each_implementation,
    evaluate,
    normal,
    ragged,
    scenes,
)

ONE = ragged(1)
INF, NAN = float("inf"), float("nan")
each_small_set = pytest.mark.parametrize(
    ("images", "counts", "shape"),
    [
        (0, (), (4, 4)),
        (2, (0, 0), (4, 4)),
        (3, (0, 2, 0), (4, 4)),
        (1, (2,), (1, 1)),
        (1, (2,), (1, 6)),
        (1, (2,), (6, 1)),
    ],
    ids=["no-images", "no-regions", "empty-images", "1x1", "H1", "W1"],
)
each_border = pytest.mark.parametrize("border", ["zero", "clamp"])


def box(*corners: float) -> torch.Tensor:
    return torch.tensor([corners], dtype=torch.float32)


def crop(impl, device, features, boxes, ptr, size=7, border="zero"):
    """crop_resize on `device`, its result on the CPU."""
    return crop_resize(features.to(device), boxes.to(device), ptr.to(device), size, border=border, impl=impl).cpu()


def paste(impl, device, memory, patches, boxes, ptr):
    """paste_mean on `device`, its result on the CPU."""
    tensors = (t.to(device) for t in (memory, patches, boxes, ptr))
    return paste_mean(*tensors, impl=impl).cpu()


# -------------------------------------------------------------------------------------------------------- crop_resize


@each_device
@each_border
@drawn(40)
@given(scene=scenes(), size=st.integers(1, 5))
def test_crop_follows_tensorflows_rule(device, border, scene, size):
    height, width, boxes, ptr, seed = scene
    features = normal(len(ptr) - 1, 2, height, width, seed=seed)
    got = crop("reference", device, features, boxes, ptr, size, border)
    assert_exact(got, oracles.crop_resize(features, boxes, ptr, size, border))


@each_implementation("crop_resize")
@each_dtype
@each_border
@drawn(15)
@given(scene=scenes(), size=st.integers(1, 5))
def test_crop_rounds_once(impl, device, dtype, border, scene, size):
    height, width, boxes, ptr, seed = scene
    features = normal(len(ptr) - 1, 2, height, width, seed=seed).to(dtype)
    got = crop(impl, device, features, boxes, ptr, size, border)
    oracle = oracles.crop_resize(features, boxes, ptr, size, border)
    # Four products and sums; and a sample's position carries three roundings of a coordinate of at most 8 cells, each
    # of which moves the value by twice the largest feature.
    assert_rounded_once(got, oracle, 8 + 3 * 8 * 2, features.double().abs().max() if features.numel() else 0.0)


@each_device
@each_border
def test_crop_equals_grid_sample(device, border):
    """Zero padding agrees for boxes inside the map (grid_sample blends across the border); clamping for all."""
    height, width, size, count = 6, 9, 7, 40
    corners = torch.rand(count, 4, generator=torch.Generator().manual_seed(0))
    if border == "clamp":
        corners = corners * 3 - 1
    boxes = corners * torch.tensor([width - 1, height - 1] * 2)
    features = normal(1, 3, height, width)
    steps = torch.linspace(0, 1, size, dtype=torch.float64)
    x1, y1, x2, y2 = boxes.double()[:, :, None].unbind(1)
    x = ((x1 + steps * (x2 - x1)) / (width - 1) * 2 - 1)[:, None, :].expand(-1, size, -1)
    y = ((y1 + steps * (y2 - y1)) / (height - 1) * 2 - 1)[:, :, None].expand(-1, -1, size)
    padding = "border" if border == "clamp" else "zeros"
    wanted = grid_sample(
        features.expand(count, -1, -1, -1), torch.stack([x, y], -1), padding_mode=padding, align_corners=True
    )
    assert_exact(crop("reference", device, features, boxes, ragged(count), size, border), wanted)


@each_implementation("crop_resize")
def test_crop_size_one_samples_the_centre(impl, device):
    features = torch.arange(20.0).reshape(1, 1, 4, 5)
    got = crop(impl, device, features, torch.tensor([[1.0, 0.0, 3.0, 2.0], [0.0, 1.0, 1.0, 2.0]]), ragged(2), 1)
    assert got.flatten().tolist() == [7.0, 8.0]  # (y, x) = (1, 2) and (1.5, 0.5)


@each_implementation("crop_resize")
def test_crop_of_the_whole_map_is_the_map(impl, device):
    features = normal(1, 3, 5, 5).float()
    got = crop(impl, device, features, box(0, 0, 4, 4), ONE, 5)
    assert bits_equal(got.contiguous(), features)


@each_implementation("crop_resize")
def test_crop_of_an_inverted_box_is_the_mirror_image(impl, device):
    features = normal(1, 3, 6, 6).float()
    upright, inverted = (crop(impl, device, features, box(*b), ONE, 5) for b in ((1, 0, 5, 4), (5, 4, 1, 0)))
    assert torch.equal(inverted, upright.flip(2, 3))


@each_implementation("crop_resize")
@pytest.mark.parametrize(
    ("corners", "alive"),
    [
        ((0, 0, 1e30, 1e30), 1),  # its first sample
        ((-1e30, -1e30, 0, 0), 1),  # its last
        ((1e30, 0, 1e30, 2), 0),
        ((-1e30, 0, -1e30, 2), 0),
        ((0, 0, INF, 2), 0),
        ((0, -INF, 2, 2), 0),
        ((INF, INF, INF, INF), 0),
        ((-INF, -INF, INF, INF), 0),
        ((NAN, 0, 2, 2), 0),
        ((0, 0, 2, NAN), 0),
        ((NAN, NAN, NAN, NAN), 0),
    ],
    ids=str,
)
@each_border
def test_crop_of_unbounded_boxes_is_defined(impl, device, corners, alive, border):
    """Samples at NaN or infinite positions are 0, also with border="clamp"; gradients stay finite."""
    boxes = torch.cat([box(*corners), box(0, 0, 2, 2)])
    features = normal(1, 2, 4, 4).float().to(device).requires_grad_()
    out = crop(impl, device, features, boxes, ragged(2), 3, border)
    assert torch.equal(out.double(), oracles.crop_resize(features.detach().cpu(), boxes, ragged(2), 3, border))
    assert bits_equal(out[1:], crop(impl, device, features, boxes[1:], ONE, 3, border)), "disturbs its neighbour"
    if border == "clamp" and boxes[0].isfinite().all():
        alive = 9
    assert int((out[0, 0] != 0).sum()) == alive
    (gradient,) = torch.autograd.grad(out[0].sum(), features)
    assert float(gradient.sum()) == 2 * alive  # fails for NaN too


@each_implementation("crop_resize")
@each_border
@pytest.mark.parametrize(("offset", "counts"), [(9e-5, True), (1.2e-4, False)], ids=["just-on", "beyond"])
@pytest.mark.parametrize("side", ["low", "high"])
@pytest.mark.parametrize("axis", ["x", "y"])
def test_crop_border_tolerance(impl, device, border, offset, counts, side, axis):
    """A sample within 1e-4 of the border is on it, one beyond is 0 (or clamped); the gradient agrees."""
    at = -offset if side == "low" else 2 + offset
    boxes = box(at, 1, at, 1) if axis == "x" else box(1, at, 1, at)
    edge = 0 if side == "low" else 2
    cell = (1, edge) if axis == "x" else (edge, 1)
    features = normal(1, 1, 3, 3).float().to(device).requires_grad_()
    out = crop(impl, device, features, boxes, ONE, 2, border)
    counts = counts or border == "clamp"
    wanted = features.detach().cpu()[0, 0][cell] if counts else torch.tensor(0.0)
    assert torch.equal(out, wanted.expand(1, 1, 2, 2))
    (gradient,) = torch.autograd.grad(out.sum(), features)
    spread = torch.zeros(3, 3)
    spread[cell] = 4.0 if counts else 0.0
    assert torch.equal(gradient[0, 0].cpu(), spread)


@each_implementation("crop_resize")
@each_small_set
@each_border
def test_crop_of_small_and_empty_sets(impl, device, images, counts, shape, border):
    features = normal(images, 3, *shape).float().to(device).requires_grad_()
    boxes, ptr = box_grid(sum(counts), 3), ragged(*counts)
    out = crop(impl, device, features, boxes, ptr, 4, border)
    assert_rounded_once(out.detach(), oracles.crop_resize(features.detach().cpu(), boxes, ptr, 4, border), 60, 4.0)
    (gradient,) = torch.autograd.grad(out.sum(), features)
    assert gradient.shape == features.shape
    for image, count in enumerate(counts):
        assert bool(gradient[image].any()) <= bool(count)


# --------------------------------------------------------------------------------------------------------- paste_mean


@each_device
@drawn(40)
@given(scene=scenes(), size=st.integers(2, 5))
def test_paste_follows_its_definition(device, scene, size):
    height, width, boxes, ptr, seed = scene
    memory = normal(len(ptr) - 1, 2, height, width, seed=seed)
    patches = normal(len(boxes), 2, size, size, seed=seed + 1)
    wanted, count = oracles.paste_mean(memory, patches, boxes, ptr)
    got = paste("reference", device, memory, patches, boxes, ptr)
    assert_exact(got, wanted)
    assert torch.equal(coverage(boxes.to(device), ptr.to(device), size, height, width).cpu(), count)
    untouched = (count == 0)[:, None].expand_as(got)
    assert bits_equal(got[untouched], memory[untouched])


@each_implementation("paste_mean")
@each_dtype
@drawn(15)
@given(scene=scenes(), size=st.integers(2, 5))
def test_paste_rounds_once(impl, device, dtype, scene, size):
    height, width, boxes, ptr, seed = scene
    memory = normal(len(ptr) - 1, 2, height, width, seed=seed).to(dtype)
    patches = normal(len(boxes), 2, size, size, seed=seed + 1).to(dtype)
    wanted, count = oracles.paste_mean(memory, patches, boxes, ptr)
    got = paste(impl, device, memory, patches, boxes, ptr)
    # Four products and sums per region and the division; a patch position carries four roundings of at most size - 1.
    scale = sum(float(t.double().abs().max()) for t in (memory, patches) if t.numel())
    assert_rounded_once(got, wanted, 8 + 4 + 4 * (size - 1) * 2, scale)
    untouched = (count == 0)[:, None].expand_as(got)
    assert bits_equal(got[untouched], memory[untouched])


@each_implementation("paste_mean")
def test_paste_leaves_uncovered_cells_to_the_bit(impl, device):
    """Negative zeros and NaN stay; a NaN patch does not leak out of its box."""
    memory = torch.tensor([-0.0, NAN, 1.5, -INF]).repeat(4, 1).reshape(1, 1, 4, 4)
    patches = torch.full((2, 1, 3, 3), NAN)
    boxes = torch.tensor([[3.0, 3, 3, 3], [2, 2, 3, 3]])  # nothing; a corner
    got = paste(impl, device, memory, patches, boxes, ragged(2))
    outside = torch.ones(4, 4, dtype=torch.bool)
    outside[2:, 2:] = False
    assert bits_equal(got[0, 0][outside], memory[0, 0][outside])
    assert got[0, 0, 2:, 2:].isnan().all()


@each_implementation("paste_mean")
def test_paste_of_ones_adds_one_where_covered(impl, device):
    """Any number of constant patches, overlapping or not, has mean 1: exactly, as these weights are powers of two."""
    boxes, ptr = torch.tensor([[0.0, 0, 4, 4], [1, 1, 3, 3], [0, 2, 4, 4], [2, 2, 10, 10]]), ragged(4)
    got = paste(impl, device, torch.zeros(1, 2, 6, 8), torch.ones(4, 2, 3, 3), boxes, ptr)
    _, count = oracles.paste_mean(torch.zeros(1, 2, 6, 8), torch.ones(4, 2, 3, 3), boxes, ptr)
    assert count.unique().tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(got, (count > 0).float()[:, None].expand_as(got))


@each_implementation("paste_mean")
def test_paste_of_many_regions(impl, device):
    """More regions in one image than the reference works on at once."""
    count = 150
    boxes, patches = box_grid(count, 4), normal(count, 2, 3, 3).float()
    memory, ptr = normal(2, 2, 4, 4).float(), ragged(count - 5, 5)
    wanted, counts = oracles.paste_mean(memory, patches, boxes, ptr)
    got = paste(impl, device, memory, patches, boxes, ptr)
    terms = 8 * int(counts.max()) + 8
    assert_rounded_once(got, wanted, terms, float(patches.abs().max() + memory.abs().max()))
    crops = crop("reference", device, memory, boxes, ptr, 3)
    assert_rounded_once(crops, oracles.crop_resize(memory, boxes, ptr, 3, "zero"), 56, float(memory.abs().max()))


@each_implementation("paste_mean")
@pytest.mark.parametrize(
    "corners",
    [
        (1, 1, 1, 3),
        (1, 1, 3, 1),
        (2, 2, 2, 2),
        (NAN, 0, 3, 3),
        (0, 0, 3, NAN),
        (0, 0, INF, 3),
        (0, -INF, 3, 3),
        (-INF, -INF, INF, INF),
        (INF, INF, INF, INF),
        (1e30, 1e30, 2e30, 2e30),
        (8, 8, 9, 9),
    ],
    ids=str,
)
def test_boxes_that_cover_nothing(impl, device, corners):
    """They change no cell, take no part in any mean, and their patches get no gradient."""
    boxes = torch.cat([box(*corners), box(0, 0, 3, 3)])
    memory, patches = normal(1, 2, 5, 5).float(), normal(2, 2, 3, 3, seed=1).float().requires_grad_()
    got = paste(impl, device, memory, patches, boxes, ragged(2))
    assert bits_equal(got.detach(), paste(impl, device, memory, patches[1:], boxes[1:], ONE).detach())
    (gradient,) = torch.autograd.grad(got.sum(), patches)
    assert not gradient[0].any()
    assert gradient[1].isfinite().all()
    assert gradient[1].any()


@each_implementation("paste_mean")
def test_paste_of_huge_and_inverted_boxes(impl, device):
    patches = normal(1, 1, 5, 5).float()
    huge = paste(impl, device, torch.zeros(1, 1, 4, 4), patches, box(-1e30, -1e30, 1e30, 1e30), ONE)
    assert torch.equal(huge, patches[0, 0, 2, 2].expand_as(huge))  # every cell lies in its middle
    upright, inverted = (
        paste(impl, device, torch.zeros(1, 1, 5, 5), patches, box(*b), ONE) for b in ((0, 0, 4, 4), (4, 4, 0, 0))
    )
    assert torch.equal(upright, patches)
    assert torch.equal(inverted, patches.flip(2, 3))


@each_implementation("paste_mean")
@pytest.mark.parametrize(("offset", "counts"), [(9e-5, True), (1.2e-4, False)], ids=["just-on", "beyond"])
@pytest.mark.parametrize("axis", ["x", "y"])
def test_paste_border_tolerance(impl, device, offset, counts, axis):
    """A cell whose patch position lies within 1e-4 outside reads the patch's border; the gradient agrees."""
    low = 1 + offset  # cell 1 falls on patch position (1 - low) / 2 * 2 = -offset
    boxes = box(low, 0, low + 2, 4) if axis == "x" else box(0, low, 4, low + 2)
    patches = normal(1, 1, 3, 3).float().requires_grad_()
    got = paste(impl, device, torch.zeros(1, 1, 5, 5), patches, boxes, ONE)
    line = got[0, 0, 0::2, 1] if axis == "x" else got[0, 0, 1, 0::2]
    border = patches.detach()[0, 0, :, 0] if axis == "x" else patches.detach()[0, 0, 0, :]
    assert torch.equal(line.detach(), border if counts else torch.zeros(3))
    (gradient,) = torch.autograd.grad(line.sum(), patches)
    reached = gradient[0, 0, :, 0] if axis == "x" else gradient[0, 0, 0, :]
    assert torch.equal(reached, torch.full((3,), float(counts)))


@each_implementation("paste_mean")
@each_small_set
def test_paste_into_small_and_empty_sets(impl, device, images, counts, shape):
    memory = normal(images, 3, *shape).float().requires_grad_()
    patches = normal(sum(counts), 3, 4, 4, seed=1).float().requires_grad_()
    boxes, ptr = torch.tensor([[-1.0, -1, 2, 2], [0, 0, 1, 1]])[: sum(counts)], ragged(*counts)
    out = paste(impl, device, memory, patches, boxes, ptr)
    wanted, _ = oracles.paste_mean(memory.detach(), patches.detach(), boxes, ptr)
    assert_rounded_once(out.detach(), wanted, 40, 8.0)
    gradients = torch.autograd.grad(out.sum(), (memory, patches))
    assert torch.equal(gradients[0], torch.ones_like(memory))
    assert gradients[1].isfinite().all()


# --------------------------------------------------------------------------------------------------------------- both


def assert_adjoint(device, boxes, ptr, height, width, size, border, seed=0):
    """<crop(f), g> = <f, crop'(g)> and <paste(0, p), m> = <p, paste'(m)>: the gradients need no finite differences."""
    maps, patches = (len(ptr) - 1, 2, height, width), (len(boxes), 2, size, size)
    f, m, p, g = (normal(*shape, seed=seed + i) for i, shape in enumerate((maps, maps, patches, patches)))
    f, m, p, g, boxes, ptr = (t.to(device) for t in (f, m, p, g, boxes, ptr))
    ops = torch.ops.irnet
    crops = ops.crop_resize.reference(f, boxes, ptr, size, border)
    back = ops.crop_resize_backward.reference(g, boxes, ptr, height, width, border)
    # Relative to the sum of the magnitudes: the products cancel.
    assert abs((crops * g).sum() - (f * back).sum()) <= 1e-12 * (crops * g).abs().sum()
    pasted = ops.paste_mean.reference(torch.zeros_like(m), p, boxes, ptr)
    back = ops.paste_mean_backward.reference(m, boxes, ptr, size)
    assert abs((pasted * m).sum() - (p * back).sum()) <= 1e-12 * (pasted * m).abs().sum()


@each_device
@drawn(40)
@given(scene=scenes(), size=st.integers(2, 5), border=st.sampled_from(["zero", "clamp"]))
def test_gradients_are_adjoints(device, scene, size, border):
    height, width, boxes, ptr, seed = scene
    assert_adjoint(device, boxes, ptr, height, width, size, border, seed)


@each_device
@each_border
def test_gradients_of_many_regions_are_adjoints(device, border):
    assert_adjoint(device, box_grid(150, 4), ragged(145, 5), 4, 5, 3, border)


@each_implementation("crop_resize")
def test_crop_bits_do_not_depend_on_the_batch(impl, device):
    counts = (3, 0, 5, 2)
    ptr, boxes, features = ragged(*counts), box_grid(10, 6), normal(4, 5, 6, 7).float()
    upstream = normal(10, 5, 7, 7, seed=1).float().to(device)

    def run(features, boxes, ptr, upstream):
        features = features.to(device).requires_grad_()
        out = crop_resize(features, boxes.to(device), ptr.to(device), impl=impl)
        return out.detach(), torch.autograd.grad(out, features, upstream)[0]

    together = run(features, boxes, ptr, upstream)
    for image, count in enumerate(counts):
        own = slice(int(ptr[image]), int(ptr[image + 1]))
        alone = run(features[image : image + 1], boxes[own], ragged(count), upstream[own])
        assert bits_equal(alone[0], together[0][own])
        assert bits_equal(alone[1], together[1][image : image + 1])


@each_implementation("paste_mean")
def test_paste_bits_do_not_depend_on_the_batch(impl, device):
    counts = (3, 0, 5, 2)
    ptr, boxes = ragged(*counts), box_grid(10, 6)
    memory, patches = normal(4, 5, 6, 7).float(), normal(10, 5, 7, 7).float()
    upstream = normal(4, 5, 6, 7, seed=1).float().to(device)

    def run(memory, patches, boxes, ptr, upstream):
        patches = patches.to(device).requires_grad_()
        out = paste_mean(memory.to(device), patches, boxes.to(device), ptr.to(device), impl=impl)
        return out.detach(), torch.autograd.grad(out, patches, upstream)[0]

    together = run(memory, patches, boxes, ptr, upstream)
    for image, count in enumerate(counts):
        own, at = slice(int(ptr[image]), int(ptr[image + 1])), slice(image, image + 1)
        alone = run(memory[at], patches[own], boxes[own], ragged(count), upstream[at])
        assert bits_equal(alone[0], together[0][at])
        assert bits_equal(alone[1], together[1][own])


def same_bits_with_any_number_of_threads(call, *tensors):
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(evaluate(call, [t.clone().requires_grad_() for t in tensors]))
    finally:
        torch.set_num_threads(threads)
    return all(all(map(bits_equal, results[0], other)) for other in results[1:])


@each_implementation("crop_resize")
def test_crop_bits_do_not_depend_on_threads(impl, device):
    boxes, ptr, features = box_grid(40, 30), ragged(25, 15), normal(2, 64, 31, 33).float().to(device)
    boxes, ptr = boxes.to(device), ptr.to(device)
    assert same_bits_with_any_number_of_threads(lambda f: crop_resize(f, boxes, ptr, impl=impl), features)


@each_implementation("paste_mean")
def test_paste_bits_do_not_depend_on_threads(impl, device):
    boxes, ptr = box_grid(40, 30).to(device), ragged(25, 15).to(device)
    memory, patches = normal(2, 64, 31, 33).float().to(device), normal(40, 64, 7, 7).float().to(device)
    assert same_bits_with_any_number_of_threads(lambda m, p: paste_mean(m, p, boxes, ptr, impl=impl), memory, patches)


# ------------------------------------------------------------------------------------------------------------ refusals

F, B, P, M = torch.zeros(1, 2, 4, 4), torch.zeros(3, 4), ragged(3), torch.zeros(3, 2, 5, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crop_resize(F[0], B, P), r"crop_resize: features must be \[B, C, H, W\], got \[2, 4, 4\]"),
        (lambda: crop_resize(F.int(), B, P), "crop_resize: wants one floating dtype, got features torch.int32"),
        (lambda: crop_resize(F, B.double(), P), "crop_resize: boxes must be float32"),
        (lambda: crop_resize(F, B[:, :3], P), r"crop_resize: boxes must be .* got .*\[3, 3\]"),
        (lambda: crop_resize(F, B, P.int()), "crop_resize: ptr must be int64"),
        (lambda: crop_resize(F, B, ragged(1, 2)), "crop_resize: ptr must have 2 entries for 1 images, got 3"),
        (lambda: crop_resize(F, B, P[:0]), "crop_resize: ptr must be int64"),
        (lambda: crop_resize(F, B, P, 0), "crop_resize: size must be at least 1, got 0"),
        (lambda: crop_resize(F, B, P, border="wrap"), "crop_resize: border must be one of .* got 'wrap'"),
        (lambda: crop_resize(F, B.to("meta"), P), "crop_resize: wants one device, got .*boxes on meta"),
        (lambda: crop_resize(F, B, ragged(2), impl="reference"), "crop_resize: ptr must rise from 0 to .*3"),
        (lambda: crop_resize(F, B, ragged(4), impl="reference"), "crop_resize: ptr must rise from 0 to .*3"),
        (lambda: crop_resize(F, B, P + 1, impl="reference"), "crop_resize: ptr must rise from 0"),
        (lambda: paste_mean(F[0], M, B, P), "paste_mean: memory must be"),
        (lambda: paste_mean(F, M[:, :1], B, P), r"paste_mean: patches must be \[R, 2, P, P\] .* got \[3, 1, 5, 5\]"),
        (lambda: paste_mean(F, M[..., :4], B, P), "paste_mean: patches must be"),
        (lambda: paste_mean(F, M[..., :1, :1], B, P), "paste_mean: patches must be .* P at least 2"),
        (lambda: paste_mean(F, M.double(), B, P), "paste_mean: wants one floating dtype, got memory .*, patches"),
        (lambda: paste_mean(F, M[:2], B, P), "paste_mean: 2 patches, but 3 boxes"),
        (lambda: paste_mean(F, M, B, ragged(1, 2)), "paste_mean: ptr must have 2 entries"),
        (lambda: paste_mean(F, M, B, P.to("meta")), "paste_mean: wants one device, got .*ptr on meta"),
        (
            lambda: paste_mean(torch.cat([F, F]), M, B, torch.tensor([0, 4, 3]), impl="reference"),
            "paste_mean: ptr must rise from 0",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
