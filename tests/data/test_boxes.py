"""Boxes that users give: their files, and what of them cannot be regions of an image."""

import json

import pytest
import torch

from irnet.data.boxes import check_boxes, read_boxes
from irnet.errors import InputError


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
    boxes_read, names_read = read_boxes(tmp_path / name)
    assert boxes_read.dtype == torch.float32
    assert boxes_read.shape == (len(boxes), 4)
    assert boxes_read.tolist() == boxes
    assert names_read == names


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
