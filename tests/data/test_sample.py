"""The step from samples to batches: reading images, transforms, boxes given by users, collation."""

import json

import pytest
import torch

from irnet.data.boxes import check_boxes, read_boxes
from irnet.data.sample import Sample, collate, flip, left_right_swap, normalise, prepare, resize, resized_size
from irnet.errors import InputError


def make_sample(height=40, width=60, boxes=((3.0, 4.0, 20.0, 30.0), (10.0, 0.0, 60.0, 40.0)), seed=0, name="a.png"):
    image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Sample(image, boxes, torch.arange(len(boxes)), name)


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
        ((480, 640), None, 1000, (480, 640)),
        ((100, 400), 200, None, (200, 800)),
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
    resized = resize(Sample(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), "s"), 16, None).image
    assert resized[:, :, 2:-2].sub(127.5).abs().max() < 20


def test_resize_none_leaves_the_pixels_alone():
    sample = make_sample()
    resized = resize(sample, None, None)
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
    ready = prepare(sample, 25, 1000, True, torch.tensor([0]))
    assert ready.image.dtype == torch.float32
    assert ready.image.shape == (3, 25, 40)
    assert ready.boxes.tolist() == [[36.0, 0.0, 40.0, 25.0]]
    assert (ready.image[:, :, 37:] > normalise(torch.full((3, 1, 1), 250.0))).all()


def test_collate_keeps_order_and_counts_images_without_regions():
    samples = [
        prepare(make_sample(8, 9, [], name="none")),
        prepare(make_sample(10, 11, [(0, 0, 5, 5), (1, 1, 2, 2)], name="two")),
        prepare(make_sample(12, 13, [], name="none2")),
        prepare(make_sample(14, 15, [(2, 2, 3, 3)], name="one")),
    ]
    samples[1].kinds, samples[3].kinds = ["a", "b"], ["c"]
    batch = collate(samples)
    assert batch.ptr.tolist() == [0, 0, 2, 2, 3]
    assert batch.ptr.dtype == batch.labels.dtype == torch.int64
    assert batch.boxes[:, 0].tolist() == [0.0, 1.0, 2.0]
    assert batch.labels.tolist() == [0, 1, 0]
    assert batch.names == ["none", "two", "none2", "one"]
    assert batch.kinds == ["a", "b", "c"]
    assert [tuple(image.shape) for image in batch.images] == [(3, 8, 9), (3, 10, 11), (3, 12, 13), (3, 14, 15)]
    moved = batch.to("cpu")
    assert torch.equal(moved.ptr, batch.ptr)
    empty = collate(samples[:1])
    assert empty.boxes.shape == (0, 4)
    assert empty.ptr.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("name", "text", "boxes", "names"),
    [
        ("b.json", "[[1, 2, 3.5, 4], [5, 6, 7, 8]]", [[1, 2, 3.5, 4], [5, 6, 7, 8]], None),
        ("b.txt", "[[1, 2, 3, 4]]", [[1, 2, 3, 4]], None),
        ("b.json", '[{"box": [1, 2, 3, 4], "name": "cat"}]', [[1, 2, 3, 4]], ["cat"]),
        ("b.json", '[{"box": [1, 2, 3, 4]}]', [[1, 2, 3, 4]], None),
        ("b.csv", "# x1,y1,x2,y2\n1, 2, 3, 4\n\n5,6,7,8.25  # the dog\n", [[1, 2, 3, 4], [5, 6, 7, 8.25]], None),
        ("b.txt", "\ufeff1 2\t3 4\r\n5 6 7 8", [[1, 2, 3, 4], [5, 6, 7, 8]], None),
        ("b.txt", "", [], None),
        ("b.txt", "# nothing\n", [], None),
        ("b.json", " \n", [], None),
        ("b.json", "[]", [], None),
    ],
)
def test_read_boxes(tmp_path, name, text, boxes, names):
    (tmp_path / name).write_text(text, encoding="utf-8")
    found, found_names = read_boxes(tmp_path / name)
    assert found.dtype == torch.float32
    assert found.shape == (len(boxes), 4)
    assert found.tolist() == boxes
    assert found_names == names


@pytest.mark.parametrize(
    ("name", "text", "trouble"),
    [
        ("b.json", "[[1, 2, 3, 4]", "not valid JSON"),
        ("b.json", '{"boxes": []}', "holds a JSON dict, not a list"),
        ("b.json", "[[1, 2, 3, 4], [1, 2, 3]]", "box 1 (the first is 0) is not four numbers: [1, 2, 3]"),
        ("b.json", '[[1, 2, 3, "4"]]', "box 0 (the first is 0) is not four numbers"),
        ("b.json", "[[1, 2, 3, true]]", "is not four numbers"),
        ("b.json", '[{"name": "cat"}]', "is not four numbers"),
        ("b.json", '[{"box": [1, 2, 3, 4], "name": 7}]', "a name that is not a string: 7"),
        ("b.json", '[{"box": [1, 2, 3, 4], "name": "a"}, {"box": [1, 2, 3, 4]}]', "box 1 (the first is 0) has no name"),
        ("b.txt", "1 2 3 4\n1 2 3\n", "line 2 is not four numbers: '1 2 3'"),
        ("b.txt", "1,,2,3,4", "line 1 is not four numbers"),
        ("b.csv", "x1,y1,x2,y2\n1,2,3,4", "line 1 is not four numbers"),
    ],
)
def test_read_boxes_refuses(tmp_path, name, text, trouble):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        read_boxes(tmp_path / name)
    assert trouble in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert caught.value.cure.startswith(("give a JSON list", "name all boxes"))


def test_read_boxes_refuses_what_is_no_text_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.txt: cannot be read .*check the path given to --boxes"):
        read_boxes(tmp_path / "none.txt")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match=r"b\.txt: not a text file in UTF-8; give a JSON list"):
        read_boxes(tmp_path / "b.txt")


@pytest.mark.parametrize(
    ("box", "trouble", "cure"),
    [
        ([float("nan"), 0, 5, 5], "[nan, 0, 5, 5], is not finite", "four finite numbers"),
        ([0, 0, float("inf"), 5], "[0, 0, inf, 5], is not finite", "four finite numbers"),
        ([5, 5, 5, 9], "has no width or no height", "x1 < x2"),
        ([5, 9, 6, 5], "has no width or no height", "x1 < x2"),
        ([-1.5, 0, 5, 5], "has a negative coordinate", "40 x 30 (width x height)"),
        ([30, 20, 41.5, 25], "[30, 20, 41.5, 25], reaches outside the image", "0 <= x <= 40 and 0 <= y <= 30"),
        ([1, 1, 2, 31.25], "reaches outside the image", "40 x 30"),
        ([-1, 3, 0, 9], "lies wholly outside the image", "40 x 30"),
        ([40, 3, 41, 9], "lies wholly outside the image", "40 x 30"),
    ],
)
def test_check_boxes_names_the_box(box, trouble, cure):
    boxes = torch.tensor([[1.0, 1.0, 2.0, 2.0], box])
    with pytest.raises(InputError) as caught:
        check_boxes(boxes, 30, 40, "mine.json")
    assert str(caught.value).startswith("mine.json: box 1 (the first is 0), ")
    assert trouble in caught.value.trouble
    assert cure in caught.value.cure


def test_check_boxes_clips_within_a_pixel():
    boxes = torch.tensor([[-1.0, -0.5, 41.0, 31.0], [1.0, 2.0, 3.0, 4.0]])
    assert check_boxes(boxes, 30, 40, "b").tolist() == [[0, 0, 40, 30], [1, 2, 3, 4]]
    assert check_boxes(torch.zeros(0, 4), 30, 40, "b").shape == (0, 4)


def test_read_boxes_leaves_numbers_beyond_float32_to_check_boxes(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps([[0, 0, 10**400, float("nan")]]))
    boxes, _ = read_boxes(tmp_path / "b.json")
    assert boxes[0, 2] == float("inf")
    assert boxes[0, 3].isnan()
    with pytest.raises(InputError, match="is not finite"):
        check_boxes(boxes, 30, 40, "b.json")
