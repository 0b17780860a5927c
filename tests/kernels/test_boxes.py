"""The forms of boxes: a list, and [K, 5] in any order, give the bits of the form with ptr; spatial_scale; refusals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from irnet_kernels import crop_resize, paste_mean, propagate_regions
from irnet_kernels.boxes import sort_boxes
from irnet_kernels.testing import bits_equal
from tests.kernels.helpers import box_grid, drawn, each_implementation, evaluate, normal, ragged

# Of every operator a call with its differentiable inputs, boxes in any form, and ptr.
CALLS = {
    "crop_resize": lambda inputs, boxes, ptr, **options: crop_resize(*inputs, boxes, ptr, 3, **options),
    "paste_mean": lambda inputs, boxes, ptr, **options: paste_mean(*inputs, boxes, ptr, **options),
    "propagate_regions": lambda inputs, boxes, ptr, **options: propagate_regions(
        inputs[0], boxes, ptr, inputs[1], **options
    ),
}
each_op = pytest.mark.parametrize("op", CALLS)
each_here = each_implementation("crop_resize")  # the three operators have the same ones
SCALE = 1 / 16


def leaves(op, images, regions, device="cpu"):
    shapes = {
        "crop_resize": [(images, 5, 6, 7)],
        "paste_mean": [(images, 5, 6, 7), (regions, 5, 4, 4)],
        "propagate_regions": [(regions, 4), (5, 4, 3)],
    }[op]
    return [normal(*shape, seed=seed).float().to(device).requires_grad_() for seed, shape in enumerate(shapes)]


def regions_of(*counts, device="cpu"):
    """Boxes, ptr, and the image of every box."""
    ptr = ragged(*counts)
    boxes, image = box_grid(sum(counts), 6, seed=1), torch.repeat_interleave(ptr.diff())
    return boxes.to(device), ptr.to(device), image.to(device)


def indexed(boxes, image):
    return torch.cat([image[:, None].float(), boxes], 1)


@each_op
@each_here
@pytest.mark.parametrize("counts", [(3, 0, 2), (0, 2, 0), (0, 0), (1,), ()], ids=str)
def test_a_list_gives_the_bits_of_the_form_with_ptr(op, impl, device, counts):
    boxes, ptr, _ = regions_of(*counts, device=device)
    inputs = leaves(op, len(counts), sum(counts), device)
    wanted = evaluate(lambda *t: CALLS[op](t, boxes, ptr, impl=impl), inputs)
    for form in (list, tuple):
        parts = form(boxes.split(counts) if counts else ())
        got = evaluate(lambda *t, parts=parts: CALLS[op](t, parts, None, impl=impl), inputs)
        assert all(map(bits_equal, got, wanted))


@each_op
@each_here
@drawn(15)
@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=4), seed=st.none() | st.integers(0, 99))
def test_indexed_boxes_give_the_bits_of_the_form_with_ptr_in_any_order(op, impl, device, counts, seed):
    boxes, ptr, image = regions_of(*counts, device=device)
    inputs = leaves(op, len(counts), len(boxes), device)
    if seed is not None:
        image = image[torch.randperm(len(boxes), generator=torch.Generator().manual_seed(seed)).to(device)]
    # Of every region given, its position among those sorted by image, where the regions of an image keep their order.
    order = image.argsort(stable=True).argsort()
    per_region = {"crop_resize": [], "paste_mean": [1], "propagate_regions": [0]}[op]
    unsorted = [t.detach()[order].requires_grad_() if i in per_region else t for i, t in enumerate(inputs)]

    wanted = CALLS[op](inputs, boxes, ptr, impl=impl)
    got = CALLS[op](unsorted, indexed(boxes[order], image), None, impl=impl)
    rows = slice(None) if op == "paste_mean" else order
    assert bits_equal(got, wanted[rows])
    assert op == "propagate_regions" or got.is_contiguous(memory_format=torch.channels_last)
    upstream = normal(*wanted.shape, seed=7).float().to(device)
    gradients = torch.autograd.grad(wanted, inputs, upstream)
    for i, gradient in enumerate(torch.autograd.grad(got, unsorted, upstream[rows])):
        assert torch.equal(gradient, gradients[i][order] if i in per_region else gradients[i])


@each_op
def test_an_index_that_is_no_image_is_refused_or_a_label(op):
    """ROI operators have as many images as maps; between regions, an index only keeps images apart."""
    boxes, ptr, image = regions_of(2, 3)
    inputs = leaves(op, 2, 5)
    for shift in (-1, 1):
        if op == "propagate_regions":
            got = CALLS[op](inputs, indexed(boxes, image * 7 + shift), None)
            assert bits_equal(got, CALLS[op](inputs, boxes, ptr))
            continue
        with pytest.raises(ValueError, match=rf"{op}: the images in column 0 of boxes must be in \[0, 2\)"):
            CALLS[op](inputs, indexed(boxes, image + shift), None)
        with pytest.raises(ValueError, match=r"ptr must rise from 0"):  # compiled, where nothing is looked at first
            torch.compile(lambda *t: CALLS[op](t, indexed(boxes, image + shift), None), backend="aot_eager")(*inputs)  # noqa: B023


@each_here
def test_spatial_scale_multiplies_boxes(impl, device):
    boxes, ptr, image = regions_of(3, 0, 2, device=device)
    for op in ("crop_resize", "paste_mean"):
        inputs = leaves(op, 3, 5, device)
        wanted = evaluate(lambda *t, op=op: CALLS[op](t, boxes, ptr, impl=impl), inputs)
        pixels = boxes / SCALE
        for form, bounds in ((pixels, ptr), (list(pixels.split((3, 0, 2))), None), (indexed(pixels, image), None)):
            got = evaluate(
                lambda *t, op=op, f=form, p=bounds: CALLS[op](t, f, p, spatial_scale=SCALE, impl=impl), inputs
            )
            assert all(torch.equal(g, w) for g, w in zip(got, wanted, strict=True))


@each_op
@pytest.mark.parametrize("form", ["ptr", "list", "indexed"])
def test_every_form_compiles_without_a_break(op, form):
    boxes, ptr, image = regions_of(3, 0, 2)
    inputs = leaves(op, 3, 5)
    order = torch.tensor([4, 0, 3, 1, 2])
    scale = {} if op == "propagate_regions" else {"spatial_scale": 0.5}
    form, bounds = {
        "ptr": (boxes, ptr),
        "list": (list(boxes.split((3, 0, 2))), None),
        "indexed": (indexed(boxes, image)[order], None),
    }[form]

    def call(form, bounds, *inputs):
        return CALLS[op](inputs, form, bounds, **scale)

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    eager = evaluate(lambda *t: call(form, bounds, *t), inputs)
    for got, wanted in zip(evaluate(lambda *t: compiled(form, bounds, *t), inputs), eager, strict=True):
        assert torch.equal(got, wanted)


@each_op
def test_an_exported_program_takes_any_number_of_indexed_boxes(op):
    class Called(torch.nn.Module):
        def forward(self, boxes, *inputs):
            return CALLS[op](inputs, boxes, None)

    def arguments(*counts):
        boxes, _, image = regions_of(*counts)
        inputs = [t.detach() for t in leaves(op, len(counts), len(boxes))]
        return indexed(boxes, image)[torch.randperm(len(boxes))], *inputs

    dim = {0: torch.export.Dim("regions")}
    of_inputs = {"crop_resize": (None,), "paste_mean": (None, dim), "propagate_regions": (dim, None)}[op]
    shapes = {"boxes": dim, "inputs": of_inputs}
    program = torch.export.export(Called(), arguments(4, 5), dynamic_shapes=shapes).module()
    for counts in ((4, 5), (2, 0), (30, 40)):
        given_arguments = arguments(*counts)
        assert torch.equal(program(*given_arguments), Called()(*given_arguments))


def test_the_form_with_ptr_is_passed_on_as_it_is():
    """No copy and no launch: neither a sort nor a product with a scale of 1."""
    boxes, ptr, _ = regions_of(2, 1)
    regions = sort_boxes("crop_resize", boxes, ptr, boxes, 2)
    assert regions.boxes is boxes
    assert regions.ptr is ptr
    assert regions.restore(boxes) is regions.sort(boxes) is boxes


@pytest.mark.parametrize("form", ["list", "indexed"])
def test_forms_have_shapes_on_the_meta_device(form):
    features = torch.empty(2, 5, 6, 7, device="meta")
    boxes = [torch.empty(2, 4, device="meta"), torch.empty(1, 4, device="meta")]
    boxes = boxes if form == "list" else torch.empty(3, 5, device="meta")
    assert crop_resize(features, boxes, size=3, impl="reference").shape == (3, 5, 3, 3)


BOXES, PTR, IMAGE = regions_of(2, 1)
LIST = list(BOXES.split((2, 1)))


@each_op
@pytest.mark.parametrize(
    ("boxes", "ptr", "message"),
    [
        (BOXES, None, r"without ptr, boxes must be a list .* float32 \[K, 5\], got torch.float32 \[3, 4\]"),
        (indexed(BOXES, IMAGE).double(), None, r"without ptr, boxes must be .* got torch.float64 \[3, 5\]"),
        (indexed(BOXES, IMAGE), PTR, r"boxes must be float32 \[R, 4\], got torch.float32 \[3, 5\]"),
        (LIST, PTR, "a list of boxes says which image owns which: ptr must be None"),
        ([LIST[0], LIST[1][0]], None, r"boxes\[1\] must be float32 \[n, 4\], got torch.float32 \[4\]"),
        ([LIST[0].double(), LIST[1]], None, r"boxes\[0\] must be float32 \[n, 4\], got torch.float64 \[2, 4\]"),
        ([LIST[0], LIST[1].to("meta")], None, r"wants one device, got boxes\[0\] on cpu, boxes\[1\] on meta"),
        ([t.to("meta") for t in LIST], None, "wants one device"),
        ([LIST[0], LIST[1][:0]], None, "but 2 boxes"),
    ],
)
def test_wrong_boxes_are_named(op, boxes, ptr, message):
    if op == "crop_resize" and message == "but 2 boxes":
        return  # it has nothing else with a row for every region
    with pytest.raises(ValueError, match=f"{op}: .*{message}|{op}: {message}"):
        CALLS[op](leaves(op, 2, 3), boxes, ptr)


@pytest.mark.parametrize("op", ["crop_resize", "paste_mean"])
def test_a_list_has_one_tensor_per_image(op):
    with pytest.raises(ValueError, match=f"{op}: boxes must be a list of one tensor per image, got 3 for 2 images"):
        CALLS[op](leaves(op, 2, 3), [*LIST, LIST[0][:0]], None)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("op", ["crop_resize", "paste_mean"])
def test_a_scale_is_positive(op, scale):
    with pytest.raises(ValueError, match=f"{op}: spatial_scale must be positive and finite, got {scale}"):
        CALLS[op](leaves(op, 2, 3), BOXES, PTR, spatial_scale=scale)
