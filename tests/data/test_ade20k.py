"""ADE20K of 2016 and 2021: what the files really hold, on generated trees and on two published images."""

import gzip
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from irnet.config import DataConfig
from irnet.data import cache
from irnet.data.ade20k import Ade20k, mask_boxes
from irnet.data.registry import open_dataset
from irnet.data.whole import read_list
from irnet.errors import InputError

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
SAMPLE, SPLIT = SHARED / "ade20k_2021_sample", SHARED / "ade20k_2016_split"
needs_sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"sample data absent: {SAMPLE}")
needs_split = pytest.mark.skipif(not SPLIT.is_dir(), reason=f"sample data absent: {SPLIT}")


def coded(j, n):
    return int(255 * j / n + 0.5)


def picture(path, width=40, height=30):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (9, 9, 9)).save(path)


def mask(path, boxes, count=None, background=True, code=coded, width=40, height=30):
    """A mask in which object j of `count` covers boxes[j - 1]; None for a hidden one.

    background  or else the last object covers all the rest
    """
    blue = np.zeros((height, width), np.uint8)
    count = count or len(boxes)
    if not background:
        blue[:] = code(count, count)
    for j, box in enumerate(boxes, 1):
        if box is not None:
            x1, y1, x2, y2 = box
            blue[y1:y2, x1:x2] = code(j, count)
    Image.fromarray(np.stack([blue * 0, blue * 0, blue], -1)).save(path)


BOXES = [(2, 3, 10, 12), (20, 1, 30, 28), (0, 20, 15, 30)]


def image_2016(root, name="images/training/s/street/a.jpg", rows=None, boxes=BOXES, parts=(), **more):
    path = root / name
    picture(path)
    names = ["car", "big tree", "road"]
    rows = rows or [f'{j:03d} # 0 # {j % 2} # word, {n} # {n} # "red"' for j, n in enumerate(names[: len(boxes)], 1)]
    rows += [f"{j:03d} # 1 # 0 # wheel # wheel # " for j in range(1, len(parts) + 1)]
    path.with_name(f"{path.stem}_atr.txt").write_text("\n".join(rows) + "\n")
    mask(path.with_name(f"{path.stem}_seg.png"), boxes, **more)
    if parts:
        mask(path.with_name(f"{path.stem}_parts_1.png"), parts)
    return path


def opened(root, part="train", **more):
    return Ade20k(DataConfig(name="ade20k", root=str(root), **({"min_count": 1, "val_share": 0.5} | more)), part)


def tree_2016(root, **more):
    path = image_2016(root, **more)
    image_2016(root, "images/validation/s/street/b.jpg")
    return path


def list_classes(root):
    """The release's lists of names and their counts, so that classes do not follow from the images."""
    (root / "objectnames.txt").write_text("- \nbig tree \ncar \nroad \nwheel \ntree \n")
    (root / "objectcounts.txt").write_text("1\n5\n5\n5\n5\n5\n")


def regions(data, i=0):
    sample = data[i]
    return {data.classes[n]: box for n, box in zip(sample.labels.tolist(), sample.boxes.tolist(), strict=True)}


def test_2016_reads_objects_and_parts(tmp_path):
    tree_2016(tmp_path, parts=[(3, 9, 5, 12)])
    data = opened(tmp_path)
    assert (data.split, len(data), data.classes) == ("training", 1, ["big tree", "car", "road", "wheel"])
    assert regions(data) == {
        "car": [2, 3, 10, 12],  # edges of pixels: x2 is the last pixel + 1
        "big tree": [20, 1, 30, 28],
        "road": [0, 20, 15, 30],
        "wheel": [3, 9, 5, 12],
    }
    assert data[0].attributes == {
        "part_level": ["0", "0", "0", "1"],
        "occluded": ["yes", "no", "yes", "no"],
    }
    assert data[0].name == "images/training/s/street/a.jpg"
    held_out = opened(tmp_path, "val")
    assert (held_out.split, held_out.classes, len(held_out)) == ("validation", data.classes, 1)


@pytest.mark.parametrize("code", [coded, lambda j, n: 40 * j - 3], ids=["spread", "other values"])
def test_2016_an_instance_is_not_the_rank_of_its_value_where_no_pixel_is_background(tmp_path, code):
    """Counting all values from 0, as the original code does, makes the first value number 0 and shifts every name."""
    tree_2016(tmp_path, background=False, code=code)
    boxes = regions(opened(tmp_path))
    assert boxes["car"] == [2, 3, 10, 12] and boxes["big tree"] == [20, 1, 30, 28] and boxes["road"] == [0, 0, 40, 30]


def test_2016_hidden_objects_shift_no_name(tmp_path):
    tree_2016(tmp_path, boxes=[None, BOXES[1], BOXES[2]])
    data = opened(tmp_path)
    assert regions(data) == {"big tree": [20, 1, 30, 28], "road": [0, 20, 15, 30]}
    assert data.skipped == {"without a pixel": 1}


def test_2016_a_list_that_cannot_be_matched_with_its_mask_names_nothing(tmp_path):
    tree_2016(tmp_path, count=7)
    list_classes(tmp_path)
    path = tmp_path / "images/training/s/street/a_atr.txt"
    path.write_text(path.read_text() + "004 # 0 # 0 # sky # sky # \n")
    data = opened(tmp_path)
    assert len(data) == 1 and data.skipped == {"list and mask differ": 4} and not len(data[0].labels)


def test_2016_lines_stand_in_any_order_and_numbers_begin_anew_in_each_level(tmp_path):
    rows = ["003 # 0 # 0 # x # road # ", "001 # 0 # 0 # x # car # a # b", "", "002 # 0 # 0 # x # big tree # "]
    tree_2016(tmp_path, rows=rows, parts=[(0, 0, 2, 2), (5, 5, 9, 9)])
    data = opened(tmp_path)
    assert regions(data)["road"] == [0, 20, 15, 30] and regions(data)["car"] == [2, 3, 10, 12]
    assert len(data[0].labels) == 5


@pytest.mark.parametrize("year", ["2016", "2021"])
def test_a_picture_of_another_size_than_its_mask_keeps_no_misplaced_box(tmp_path, year):
    path = tree_2016(tmp_path) if year == "2016" else tree_2021(tmp_path)
    picture(path, 80, 60)
    list_classes(tmp_path)
    data = opened(tmp_path)
    assert data.skipped == {"mask and picture differ in size": 3} and data[0].image.shape == (3, 60, 80)


def test_2016_a_mask_of_parts_of_another_size_keeps_no_misplaced_box(tmp_path):
    path = tree_2016(tmp_path, parts=[(3, 9, 5, 12)])
    mask(path.with_name("a_parts_1.png"), [(3, 9, 5, 12)], width=80, height=60)
    data = opened(tmp_path)
    assert data.skipped == {"mask and picture differ in size": 1} and len(data[0].labels) == 3


def test_splits_are_lists_or_folders_and_classes_come_from_the_training_images(tmp_path):
    names = [f"images/training/x/{i}.jpg" for i in range(4)]
    for i, name in enumerate(names):
        image_2016(tmp_path, name, rows=[f"001 # 0 # 0 # w # thing {i // 3} # "], boxes=BOXES[:1])
    with gzip.open(tmp_path / "train.txt.gz", "wt") as file:
        file.write("\n".join(names[:3]) + "\n")
    (tmp_path / "mval.txt").write_text(names[3])
    train, val = opened(tmp_path, min_count=3), opened(tmp_path, "val", min_count=3)
    assert (train.split, len(train), train.classes) == ("train", 3, ["thing 0"])
    assert (val.split, len(val), val.classes) == ("mval", 1, ["thing 0"])
    assert val.skipped == {"of a class that is left out": 1}
    (tmp_path / "objectnames.txt").write_text("- \nthing 1 \nthing 0 \nelse \n")
    (tmp_path / "objectcounts.txt").write_text("99\n5\n5\n4\n")
    assert opened(tmp_path, min_count=5).classes == ["thing 1", "thing 0"]
    (tmp_path / "objectcounts.txt").write_text("99\n5\n5\n")
    with pytest.raises(
        InputError, match=r"objectnames.txt: its 4 names and the 3 lines of objectcounts.txt are no pairs"
    ):
        opened(tmp_path)
    (tmp_path / "objectcounts.txt").unlink()
    (tmp_path / "mval.txt").write_text("images/training/x/9.jpg")
    with pytest.raises(InputError, match=r"mval.txt: lists images/training/x/9.jpg, which has no annotations \(1 of 1"):
        opened(tmp_path, "val")
    with pytest.raises(InputError, match="has no split 'night'"):
        opened(tmp_path, train_split="night")
    with pytest.raises(InputError, match=r"no name occurs 9 times in the training images; lower data.min_count"):
        opened(tmp_path, min_count=9, val_split="x")


@needs_split
def test_the_original_split_has_1484_classes(tmp_path):
    tree_2016(tmp_path)
    for path in SPLIT.glob("object*.gz"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert len(opened(tmp_path, min_count=5).classes) == 1484
    lines = {name: len(read_list(SPLIT / f"{name}.txt")) for name in ("train", "val", "mval", "mtest", "objectnames")}
    assert lines == {"train": 20210, "val": 2000, "mval": 1000, "mtest": 1000, "objectnames": 2899}


@pytest.mark.parametrize(
    ("line", "trouble"),
    [
        ("001 # 0 # 0 # car", "line 1 is not NUMBER"),
        ("one # 0 # 0 # w # car # ", "line 1 is not NUMBER"),
        ("001 # -1 # 0 # w # car # ", "line 1 is not NUMBER"),
        ("001 # 0 # maybe # w # car # ", "line 1 is not NUMBER"),
        ("001 # 0 # 0 # w #  # ", "line 1 is not NUMBER"),
        ("001 # 0 # 0 # w # car # \n001 # 0 # 0 # w # car # ", "numbers two objects of level 0 alike"),
        ("001 # 2 # 0 # w # car # ", "no such image file"),
    ],
)
def test_2016_a_malformed_list_is_one_line(tmp_path, line, trouble):
    path = image_2016(tmp_path, rows=[line])
    with pytest.raises(InputError) as caught:
        opened(tmp_path)
    assert trouble in str(caught.value) and str(path.parent) in caught.value.where and "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------- of 2021


def entry(name, box, **more):
    x1, y1, x2, y2 = box
    own = {"id": 7, "name": f"{name}, thing", "raw_name": name, "occluded": "no", "crop": "0", "attributes": []}
    own["parts"] = {"hasparts": [], "ispartof": [], "part_level": 0}
    return own | {"polygon": {"x": [x1, x2, x2, x1], "y": [y1, y1, y2, y2], "click_date": []}} | more


def image_2021(root, objects, name="images/ADE/training/urban/a.jpg"):
    path = root / name
    picture(path)
    content = {"annotation": {"filename": path.name, "imsize": [30, 40, 3], "object": objects}}
    path.with_suffix(".json").write_text(json.dumps(content))
    return path


def tree_2021(root):
    wheel = {"parts": {"hasparts": [], "ispartof": 3, "part_level": 1}, "occluded": [], "crop": "1"}
    objects = [entry("car", BOXES[0]), entry("wheel", BOXES[1], **wheel), entry("tree", BOXES[2], occluded="yes")]
    image_2021(root, [entry("car", BOXES[0])], "images/ADE/validation/urban/b.jpg")
    return image_2021(root, objects)


def test_2021_reads_outlines_and_what_the_strings_mean(tmp_path):
    """crop is "0" or "1", a text that is true either way; an empty list stands for no text."""
    tree_2021(tmp_path)
    data = opened(tmp_path)
    assert regions(data) == {"car": [2, 3, 10, 12], "wheel": [20, 1, 30, 28], "tree": [0, 20, 15, 30]}
    assert data[0].attributes == {
        "part_level": ["0", "1", "0"],
        "occluded": ["no", "", "yes"],
        "cropped": ["no", "yes", "no"],
    }


def test_2021_lists_of_one_are_what_they_hold_and_nothing_is_an_empty_list(tmp_path):
    path = tree_2021(tmp_path)
    list_classes(tmp_path)
    image_2021(tmp_path, entry("car", BOXES[0]))
    assert len(opened(tmp_path)[0].labels) == 1
    point, nothing = ({"polygon": {"x": x, "y": x, "click_date": []}} for x in (5, []))
    image_2021(tmp_path, [entry("car", BOXES[0]), entry("car", BOXES[0], **point), entry("car", BOXES[0], **nothing)])
    assert opened(tmp_path).skipped == {"zero area": 1, "without an outline": 1}
    image_2021(tmp_path, [])
    (tmp_path / "images/ADE/validation/urban/b.jpg").rename(path.with_name("c.jpg"))
    (tmp_path / "images/ADE/validation/urban/b.json").rename(path.with_name("c.json"))
    assert sorted(len(opened(tmp_path, part)[0].labels) for part in ("train", "val")) in ([0, 1], [0, 0])


def test_2021_latin_1_is_read(tmp_path):
    path = tree_2021(tmp_path).with_suffix(".json")
    path.write_bytes(path.read_text().replace('"raw_name": "car"', '"raw_name": "caf\\u00e9"').encode())
    assert "café" in opened(tmp_path).classes
    path.write_bytes(path.read_text().replace("caf\\u00e9", "café").encode("latin-1"))
    assert "café" in opened(tmp_path).classes


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        (lambda text: text[:-9], "is no annotation of ADE20K 2021"),
        (lambda text: text.replace("imsize", "size"), "is no annotation of ADE20K 2021 (KeyError"),
        (lambda text: text.replace("annotation", "notes"), "is no annotation of ADE20K 2021 (KeyError"),
        (lambda text: text.replace("raw_name", "title"), "object 0 (the first is 0) has not the fields"),
        (lambda text: text.replace('"yes"', '"perhaps"'), "object 2 (the first is 0) has not the fields"),
        (lambda text: text.replace('"y": [1,', '"y": ['), "object 1 (the first is 0) has not the fields"),
        (lambda text: text.replace('"y": [1,', '"y": ["1",'), "object 1 (the first is 0) has not the fields"),
        (lambda text: text.replace('"y": [1,', f'"y": [{"9" * 400},'), "object 1 (the first is 0) has not the fields"),
        (lambda text: text.replace("[30, 40, 3]", "[Infinity, 40, 3]"), "is no annotation of ADE20K 2021 (Overflow"),
        (lambda text: re.sub(r'"object": .*]', '"object": null', text), "ADE20K 2021 (TypeError: its objects are no"),
        (lambda text: re.sub(r'"object": .*]', '"object": 3', text), "ADE20K 2021 (TypeError: its objects are no"),
    ],
)
def test_2021_a_malformed_file_is_one_line(tmp_path, change, trouble):
    path = tree_2021(tmp_path).with_suffix(".json")
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError) as caught:
        opened(tmp_path)
    assert caught.value.where == str(path) and trouble in caught.value.trouble and "\n" not in str(caught.value)


def test_a_folder_without_annotations_is_one_line(tmp_path):
    for root, trouble in ((tmp_path / "gone", "no such folder"), (tmp_path, "holds no image with NAME.json")):
        with pytest.raises(InputError, match=trouble):
            opened(root)
    image_2021(tmp_path, [entry("car", BOXES[0])])
    with pytest.raises(InputError, match="has 1 images to train on and hold out; add images"):
        opened(tmp_path)


@needs_sample
def test_published_images(tmp_path):
    """An outline's box goes around the mask of an object that nothing hides: edge by edge, give or take its drawing."""
    train = open_dataset(DataConfig(name="ade20k", root=str(SAMPLE), min_count=1, cache="off"), "train")
    val = open_dataset(DataConfig(name="ade20k", root=str(SAMPLE), min_count=1, cache="off"), "val")
    counts = {data[0].name[-9:-4]: len(data[0].labels) for data in (train, val)}
    assert set(counts) == {"16869", "16900"} and train.classes == val.classes
    assert {"car", "wheel", "person"} <= set(train.classes)
    folder = SAMPLE / "images/ADE/training/urban/street"
    exact = {"left": 0, "right": 0, "objects": 0}
    for name, count in (("ADE_train_00016869", 51), ("ADE_train_00016900", 34)):
        blue = np.array(Image.open(folder / f"{name}_seg.png"))[..., 2]
        assert mask_boxes(blue)[0].tolist() == [coded(j, count) for j in range(1, count + 1)]
    for data in (train, val):
        blue = np.array(Image.open((SAMPLE / data[0].name).with_name(f"{Path(data[0].name).stem}_seg.png")))[..., 2]
        masks = np.array(mask_boxes(blue)[1])
        for box in data[0].boxes.numpy():
            nearest = masks[np.abs(masks - box).sum(1).argmin()]
            if np.abs(nearest - box).max() <= 1:
                exact["objects"] += 1
                exact["left"] += nearest[0] == box[0]
                exact["right"] += nearest[2] == box[2]
    assert exact["objects"] >= 40 and exact["left"] > 0.9 * exact["objects"] < exact["right"] / 0.8


def test_what_is_read_is_kept_until_a_mask_or_a_picture_changes(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cache, "LEAST", 0)
    path = tree_2016(tmp_path)
    list_classes(tmp_path)
    with caplog.at_level(logging.INFO, logger="irnet"):
        plain = opened(tmp_path)
        assert opened(tmp_path).fingerprint() == plain.fingerprint()
        assert caplog.text.count("kept for the next time") == 1
        mask(path.with_name("a_seg.png"), [BOXES[0], BOXES[1], (0, 21, 15, 30)])
        assert regions(opened(tmp_path))["road"] == [0, 21, 15, 30]
        picture(path, 80, 60)
        assert opened(tmp_path).skipped == {"mask and picture differ in size": 3}
    assert caplog.text.count("kept for the next time") == 3


def test_many_images_are_read_by_several_processes(tmp_path):
    for i in range(130):
        image_2021(tmp_path, [entry(f"thing {i % 2}", (1, 2, 3 + i % 9, 9))], f"images/ADE/training/{i:03d}.jpg")
    data = opened(tmp_path, val_split="", val_share=0.1)
    assert len(data) == 117 and data.classes == ["thing 0", "thing 1"]
    for i in (0, 50, 116):
        number = int(data.file_names[i][-7:-4])
        assert regions(data, i) == {f"thing {number % 2}": [1, 2, 3 + number % 9, 9]}
    (tmp_path / "images/ADE/training/128.json").write_text("{")
    with pytest.raises(InputError, match=r"128.json: is no annotation of ADE20K 2021"):
        opened(tmp_path)
