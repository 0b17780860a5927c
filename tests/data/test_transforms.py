"""Transforms: pixels, boxes and labels move together."""

import pytest
import torch

from irnet.data.sample import Sample
from irnet.data.transforms import flip, left_right_swap, normalise, prepare, resize, resized_size
from tests.data.tools import make_sample


def rectangle(height, width, x1, y1, x2, y2):
    """A black image with a white rectangle of whole pixels, and the rectangle as its box."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, y1:y2, x1:x2] = 255
    return Sample(image, torch.tensor([[x1, y1, x2, y2]], dtype=torch.float32), torch.tensor([0]), "r.png")


@pytest.mark.parametrize(
    ("size", "short", "long", "expected"),
    [
        ((480, 640), 600, 1000, (600, 800)),
        ((640, 480), 600, 1000, (800, 600)),
        ((300, 900), 600, 1000, (333, 1000)),  # the longer side decides
        ((427, 640), 800, 1200, (800, 1199)),
        ((2, 3000), 600, 1000, (1, 1000)),  # never zero rows
        ((480, 640), 0, 1000, (480, 640)),
        ((100, 400), 200, 0, (200, 800)),
    ],
)
def test_resized_size(size, short, long, expected):
    assert resized_size(*size, short, long) == expected


@pytest.mark.parametrize("short", [17, 40, 91])
def test_resize_keeps_box_on_its_rectangle(short):
    sample = rectangle(50, 80, 20, 10, 60, 40)
    resized = resize(sample, short, 1000)
    assert resized.image.dtype == torch.float32
    assert tuple(resized.image.shape[1:]) == resized_size(50, 80, short, 1000)
    # The image's mass tells where the rectangle went: its centre and its area, independent of the box code.
    mass = resized.image[0].double() / 255
    ys, xs = (torch.arange(n, dtype=torch.float64) + 0.5 for n in mass.shape)
    x1, y1, x2, y2 = resized.boxes[0].double()
    assert (mass * xs).sum() / mass.sum() == pytest.approx(float(x1 + x2) / 2, abs=0.05)
    assert (mass * ys[:, None]).sum() / mass.sum() == pytest.approx(float(y1 + y2) / 2, abs=0.05)
    assert mass.sum() == pytest.approx(float((x2 - x1) * (y2 - y1)), rel=0.02)


def test_resize_uses_each_axis_own_ratio_and_stays_inside():
    sample = make_sample(427, 640, [(0.0, 0.0, 640.0, 427.0)])
    resized = resize(sample, 800, 1200)
    assert resized.boxes.tolist() == [[0.0, 0.0, 1199.0, 800.0]]
    assert sample.boxes.tolist() == [[0.0, 0.0, 640.0, 427.0]]
    # Sizes for which width * (new width / width) comes out above the new width in float32.
    for height, width in [(480, 534), (427, 556), (333, 557)]:
        resized = resize(make_sample(height, width, [(0.0, 0.0, width, height)]), 600, 1000)
        assert resized.boxes[0, 2] <= resized.image.shape[2]


def test_resize_is_antialiased():
    # Four columns become one. Two of them are white, and just those that two-point interpolation would read.
    image = torch.tensor([0, 255, 255, 0], dtype=torch.uint8).repeat(16).expand(3, 64, 64).contiguous()
    resized = resize(Sample(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), "s"), 16, 0).image
    assert resized[:, :, 2:-2].sub(127.5).abs().max() < 20


def test_resize_of_zero_leaves_the_pixels_alone():
    sample = make_sample()
    resized = resize(sample, 0, 0)
    assert torch.equal(resized.image, sample.image.float())
    assert torch.equal(resized.boxes, sample.boxes)


def test_normalise_values():
    image = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256).contiguous()
    normal = normalise(image)
    assert normal.dtype == torch.float32
    assert normal[0, 0, 0] == pytest.approx(-0.485 / 0.229, abs=1e-5)
    assert normal[1, 0, 255] == pytest.approx((1 - 0.456) / 0.224, abs=1e-5)
    assert normal[2, 0, 51] == pytest.approx((0.2 - 0.406) / 0.225, abs=1e-5)


def test_flip_moves_pixels_boxes_and_labels_together():
    sample = rectangle(20, 30, 2, 5, 11, 9)
    mirrored = flip(sample, torch.tensor([1, 0]))
    x1, y1, x2, y2 = mirrored.boxes[0].long().tolist()
    assert (x1, y1, x2, y2) == (19, 5, 28, 9)
    assert (mirrored.image[:, y1:y2, x1:x2] == 255).all()
    assert int(mirrored.image.long().sum()) == int(sample.image.long().sum())
    assert mirrored.labels.tolist() == [1]
    again = flip(mirrored, torch.tensor([1, 0]))
    assert torch.equal(again.image, sample.image)
    assert torch.equal(again.boxes, sample.boxes)
    assert torch.equal(again.labels, sample.labels)


def test_left_right_swap():
    classes = ["left_arm", "lamp", "right_arm", "left shoe", "right shoe", "left_foot", "big_left_eye", "big_right_eye"]
    classes += ["bright_sky", "bleft_sky", "turn right now", "turn left now"]
    assert left_right_swap(classes).tolist() == [2, 1, 0, 4, 3, 5, 7, 6, 8, 9, 10, 11]
    assert left_right_swap([]).dtype == torch.int64


def test_prepare_mirrors_before_it_resizes():
    sample = rectangle(50, 80, 0, 0, 8, 50)
    ready = prepare(sample, 25, 1000, torch.tensor([0]))
    assert ready.image.dtype == torch.float32
    assert ready.image.shape == (3, 25, 40)
    assert ready.boxes.tolist() == [[36.0, 0.0, 40.0, 25.0]]
    assert (ready.image[:, :, 37:] > normalise(torch.full((3, 1, 1), 250.0))).all()
