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
