"""The tables of annotation files: every value that is refused, marks of encodings, threads that go on meanwhile."""

import json
import threading

import pytest

from irnet.data import coco_file
from irnet.data.coco import CocoDataset
from tests.data.tools import box_row, image_row, make, refused, tables

no_area = image_row(3, 0, 5)
BAD_FILES = {
    "cut short": ('{"images": [', "not valid JSON", "fetch the file again"),
    "a list": ("[]", "holds a JSON list, not COCO's tables", "instances format"),
    "list of numbers": ('{"images": [], "annotations": [1]}', "lists no images", "instances format"),
    "numbers for annotations": (tables() | {"annotations": [1]}, "has no list of annotations", "instances format"),
    "no categories key": ({"images": [image_row(1)], "annotations": []}, "has no list of categories", "instances"),
    "no annotations key": (
        {"images": [image_row(1)], "categories": [{"id": 1, "name": "a"}]},
        "has no list of annotations",
        "instances format",
    ),
    "no images": (tables(images=[]), "lists no images", "instances format"),
    "no class": (tables(categories=[]), "lists no categories", "instances format"),
    "no image_id": (
        tables([{"id": 3, "category_id": 1, "bbox": [1, 1, 1, 1]}]),
        "annotation 3 has no image_id",
        "fetch",
    ),
    "no bbox": (
        tables([{"id": 3, "category_id": 1, "image_id": 1}]),
        "annotation 3 has no bbox",
        "remove the annotation",
    ),
    "short bbox": (tables([box_row(3, 1, [1, 2, 3, 4]), box_row(4, 1, [1, 2, 3])]), "annotation 4 has bbox", "fetch"),
    "text bbox": (tables([box_row(3, 1, [1, 2, 3, "wide"])]), 'annotation 3 has bbox = [1, 2, 3, "wide"]', "fetch"),
    "huge bbox": (tables([box_row(3, 1, [1, 2, 3, 10**400])]), "annotation 3 has bbox = [1, 2, 3, 1000", "fetch"),
    "text id": (
        tables([box_row("x", 1, [1, 2, 3, 4])]),
        'annotation 0 (of 1) has id = "x", not an integer',
        "fetch",
    ),
    "text id among numbers in quotes": (
        tables([box_row("3", 1, [1, 2, 3, 4]), box_row("07", 1, [1, 2, 3, 4])]),
        'annotation 1 (of 2) has id = "07", not an integer',
        "fetch",
    ),
    "long text id": (tables([box_row("9" * 19, 1, [1, 2, 3, 4])]), f'has id = "{"9" * 19}", not an integer', "fetch"),
    "huge id": (tables([box_row(2**70, 1, [1, 2, 3, 4])]), f"has id = {2**70}, not an integer", "fetch"),
    "missing image": (
        tables([box_row(3, 1, [1, 2, 3, 4]), box_row(4, 77, [1, 2, 3, 4]), box_row(5, 78, [1, 2, 3, 4])]),
        "annotation 4 refers to image 77, which is not in the file (2 such annotations)",
        "add the image or remove its annotations",
    ),
    "missing category": (
        tables([box_row(4, 1, [1, 2, 3, 4], 99)]),
        "annotation 4 refers to category 99, which is not in the file",
        "add the category or remove its annotations",
    ),
    "same image id": (tables(images=[image_row(1), image_row(1)]), "more than one image has the id 1", "its own id"),
    "same class id": (
        tables(categories=[(1, "a", ""), (1, "b", "")]),
        "more than one category has the id 1",
        "its own id",
    ),
    "same class name": (
        tables(categories=[(1, "a", ""), (2, "a", "")]),
        "more than one category has the name 'a'",
        "its own",
    ),
    "nameless class": (tables(categories=[(1, None, "")]), "category 1 has no name", "fetch"),
    "no size": (tables(images=[{"id": 1, "file_name": "a.png"}]), "image 1 has no height", "fetch"),
    "empty size": (tables(images=[no_area]), "image 3 has the size 0 x 5", "fetch"),
    "no file name": (tables(images=[{"id": 1, "width": 5, "height": 5}]), "image 1 has no file_name", "fetch"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_refuses_annotation_files(tmp_path, case):
    data, trouble, cure = BAD_FILES[case]
    path = make(tmp_path, data)
    error = refused(tmp_path)
    assert error.where == str(path)
    assert trouble in error.trouble
    assert cure in error.cure


def test_a_mark_of_utf_8_is_read_over(tmp_path):
    path = make(tmp_path, tables([box_row(1, 1, [1, 2, 3, 4])]))
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        path.write_bytes(json.dumps(json.loads(path.read_bytes())).encode(encoding))
        assert len(CocoDataset(tmp_path, "train")) == 1


def test_the_first_row_that_cannot_be_read_is_named(tmp_path):
    images = [image_row(1), image_row(2) | {"id": 2.0}, image_row(3)]
    make(tmp_path, tables(images=images) | {"annotations": [{"bbox": [1] * 4}] * 6})
    assert refused(tmp_path).trouble == "annotation 0 (of 6) has no id"


def test_ids_in_quotes_are_those_without(tmp_path):
    """Images' in quotes, and annotations' without, as some tools write them."""
    images, boxes = [image_row(i) for i in (10, 9)], [box_row(i, i, [1, 2, 3, 4]) for i in (9, 10)]
    read = []
    for name, rows in (("plain", images), ("quoted", [row | {"id": str(row["id"])} for row in images])):
        make(tmp_path / name, tables(boxes, rows))
        data = CocoDataset(tmp_path / name, "train")
        read.append((data.image_ids.tolist(), [labels.tolist() for labels in data.image_labels()]))
    assert read[0] == read[1] == ([9, 10], [[0], [0]])


def test_an_id_in_quotes_that_is_none_is_named(tmp_path):
    make(tmp_path, tables(images=[image_row(i) | {"id": name} for i, name in enumerate(("1", "2", "img-x"))]))
    assert refused(tmp_path).trouble == 'image 2 (of 3) has id = "img-x", not an integer'


def test_other_threads_have_their_turn_while_a_large_file_is_parsed(tmp_path, monkeypatch):
    """Else neither a line about it nor Ctrl-C would come through for as long as that takes."""
    row = '{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1.5, 2.5, 3.5, 4.5], "iscrowd": 0}'
    path = tmp_path / "large.json"
    path.write_text('{"images": [{}], "categories": [{}], "annotations": [' + ", ".join([row] * 200_000) + "]}")
    turns, ended, loads, during = [], threading.Event(), json.loads, []

    def count() -> None:
        while not ended.wait(0.001):
            turns.append(None)

    def watched(*arguments, **options):
        before = len(turns)
        tables = loads(*arguments, **options)
        during.append(len(turns) - before)
        return tables

    monkeypatch.setattr(coco_file.json, "loads", watched)
    thread = threading.Thread(target=count)
    thread.start()
    try:
        coco_file.read_tables(path)
    finally:
        ended.set()
        thread.join()
    assert during[0] > 5


def test_what_is_as_the_format_says_is_decoded_without_its_other_values_and_read_the_same(tmp_path, monkeypatch):
    """The decoder of columns and the reader of rows agree, float boxes stay floats, and LVIS's names are found."""
    images = [image_row(7), image_row(3) | {"coco_url": "http://x/val2017/000003.png"}]
    del images[1]["file_name"]
    rows = [box_row(i, 3 + 4 * (i % 2), [0.1 * i, 1, 2.3, 4.56], 1 + 6 * (i % 2), area=1.5) for i in range(9, 2, -1)]
    rows += [box_row(1, 7, [0, 0, 5, 5], iscrowd=1), {**rows[0], "id": 2, "segmentation": [[1, 2, 3]]}]
    path = make(tmp_path, tables(rows, images))
    (tmp_path / "images/train/val2017").mkdir()
    (tmp_path / "images/train/val2017/000003.png").write_bytes(b"")
    monkeypatch.setattr(coco_file, "_decode", lambda path: None)
    by_rows = CocoDataset(tmp_path, "train")
    monkeypatch.undo()
    monkeypatch.setattr(coco_file, "read_tables", None)  # not needed
    decoded = CocoDataset(tmp_path, "train")
    for data in (by_rows, decoded):
        assert data.fingerprint() == by_rows.fingerprint() and data.skipped == {"iscrowd": 1}
        assert data.file_names == ["val2017/000003.png", "000007.png"] and data.image_ids.tolist() == [3, 7]
    assert decoded.table.boxes[0].tolist() == pytest.approx([0.4, 1, 2.7, 5.56], abs=1e-6)
    assert coco_file.read_columns(path).annotations.boxes.dtype == "float64"


@pytest.mark.parametrize("number", [1.5, "x", None, 2**64, [], True])
def test_a_file_that_is_not_as_the_format_says_is_read_by_rows(tmp_path, number):
    """A half of an id must not become a whole one; what is wrong is named."""
    make(tmp_path, tables([box_row(1, 1, [1, 2, 3, 4]) | {"image_id": number}]))
    assert "annotation 1 has image_id = " in refused(tmp_path).trouble
