"""What `irnet data check` says of regions, draws and counts, and what `irnet data convert` writes."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from irnet.cli import main
from irnet.config import DataConfig
from irnet.data.coco import CocoDataset
from irnet.data.registry import open_dataset
from irnet.engine.inventory import describe, write_counts
from irnet.report.sheet import CELL, TEXT, contact_sheet
from tests.data.formats import FORMATS, coco, vg, voc
from tests.data.test_layouts import roboflow
from tests.data.tools import box_row, image_row, make, tables


def test_counts_sizes_and_classes_are_told(tmp_path, capsys):
    rows = [box_row(i, 1 + i // 4, [0, 0, 4, 9 if i else 16], 7 if i < 5 else 1) for i in range(6)]
    rows.append(box_row(9, 1, [0, 0, 9, 9], iscrowd=1))
    data = tables(rows, [image_row(1), image_row(2), image_row(3)], [(1, "cup", ""), (7, "dog", ""), (8, "emu", "")])
    for split in ("train", "val"):
        make(tmp_path, data, split)
    words = ["data", "check", "--data-root", str(tmp_path), "-j", "0"]
    assert main([*words, "--counts", str(tmp_path / "counts.csv"), "--sheet", str(tmp_path / "sheet.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["train: 3 images, 6 regions, 3 classes", "  iscrowd: 1"]
    spread = "least {}, a tenth below {}, half below {}, nine tenths below {}, most {}"
    assert lines[4] == "train: regions of each image: " + spread.format(0, 0, 2, 4, 4)
    sides = "train: sides of boxes, the root of their area in pixels: " + spread.format(*["6.0"] * 3, "7.0", "8.0")
    assert lines[5] == sides
    assert lines[6:10] == [
        "train: regions of each class:",
        f"  dog        5 {'#' * 30}",
        "  cup        1 ######",
        "  emu        0",
    ]
    with open(tmp_path / "counts.csv") as file:
        assert list(csv.reader(file)) == [
            ["class", "train", "val"],
            ["cup"] + 2 * ["1"],
            ["dog"] + 2 * ["5"],
            ["emu", "0", "0"],
        ]
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size == (4 * CELL, 2 * (CELL + 2 * TEXT))


class Many:
    split, classes = "some", [f"class {i:02d}" for i in range(40)]

    def image_labels(self):
        return [torch.arange(20), torch.arange(10)]

    def image_boxes(self):
        return [torch.tensor([[0.0, 0, 4, 4]]).repeat(n, 1) for n in (20, 10)]


def test_of_many_classes_the_most_frequent_are_listed(tmp_path):
    lines = list(describe(Many()))
    assert lines[2] == "some: regions of each class, the 15 most frequent:"
    assert len(lines) == 19 and lines[3].split() == ["class", "00", "2", "#" * 30]
    assert lines[-1] == "  25 others: 1 to 0 each, 20 of them none"
    write_counts({"train": Many()}, str(tmp_path / "all.csv"))
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 41


def test_a_sheet_frames_each_region_in_the_colour_of_its_class():
    image = np.full((100, 200, 3), 128, np.uint8)
    boxes = np.array([[20.0, 20, 90, 80], [110, 20, 180, 80]], np.float32)
    pictures = [np.array(contact_sheet([(image, boxes, names, "title")])) for names in (["a", "a"], ["a", "b"])]
    scale = (CELL - 8) / 200
    y = round(50 * scale) + TEXT + 8
    at = [round(box[0] * scale) + 4 for box in boxes]
    first, second = (picture[y, at[1]].tolist() for picture in pictures)
    assert pictures[0][y, at[0]].tolist() == first != second and first != [128] * 3 != second
    assert pictures[0][y, at[0] + 20].tolist() == [128] * 3
    none = contact_sheet([(image, boxes[:0], [], "x" * 500)] * 5)
    assert none.size == (4 * CELL, 2 * (CELL + 2 * TEXT))


def test_a_sheet_leaves_out_what_cannot_be_read_and_is_a_picture(tmp_path, refused):
    coco(tmp_path)
    words = ["data", "check", "--data-root", tmp_path, "-j", "0", "--sheet"]
    refused([*words, tmp_path / "sheet.txt"], "--sheet", "is no picture's name")
    path = tmp_path / "train2017/000000000001.jpg"
    path.write_bytes(b"no image")
    refused([*words, tmp_path / "sheet.jpg"], str(path), "not a readable image")
    with Image.open(tmp_path / "sheet.jpg") as picture:
        assert picture.format == "JPEG"
    for image in tmp_path.glob("*2017/*.jpg"):
        image.write_bytes(b"")
    refused([*words, tmp_path / "other.png"], "the first of 13 findings")


# ---------------------------------------------------------------------------------------------------------- convert


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("images", ["link", "copy"])
def test_a_converted_data_set_is_the_same(tmp_path, form, images, capsys, refused):
    name, make_format = FORMATS[form]
    make_format(tmp_path / "data")
    out = tmp_path / "out"
    words = ["--data", name, "--data-root", str(tmp_path / "data"), "--output-dir", str(out), "--images", images]
    assert main(["data", "convert", *words]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("instances_train.json: 6 images, 18 regions, 3 classes")
    for part in ("train", "val"):
        before = open_dataset(DataConfig(name=name, root=str(tmp_path / "data")), part)
        after = CocoDataset(out, part)
        assert after.classes == before.classes and after.file_names == before.file_names
        assert after.fingerprint() == before.fingerprint() and after.supercategories == before.supercategories
        assert torch.equal(after[0].image, before[0].image)
        assert (after.folder / after.file_names[0]).is_symlink() == (images == "link")
    refused(["data", "convert", *words], str(out / "annotations/instances_train.json"), "is there already")
    for part in ("train", "val"):
        (out / f"annotations/instances_{part}.json").unlink()
    assert main(["data", "convert", *words]) == 0  # once more, over the images that are there


def test_boxes_that_are_no_short_decimals_come_back_to_the_bit(tmp_path):
    """Written as the doubles of their float32 they would be 17 digits long; rounded, they would be others."""
    rng = np.random.default_rng(0)
    rows = [box_row(i, 1, [*rng.uniform(0, 300, 2), *rng.uniform(0.01, 300, 2)]) for i in range(2000)]
    rows += [box_row(5000, 1, [10.1, 20.2, 30.3, 40.4], kind="crowded")]
    for split in ("train", "val"):
        make(tmp_path / "data", tables(rows, [image_row(1, 640, 640)]), split)
    words = ["--data-root", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out"), "--images", "none"]
    assert main(["data", "convert", *words]) == 0
    before, after = (CocoDataset(tmp_path / name, "train", require_images=False) for name in ("data", "out"))
    assert after.fingerprint() == before.fingerprint() and not (tmp_path / "out/train").exists()
    written = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())["annotations"][-1]
    assert written["bbox"][:2] == [10.1, 20.2] and written["id"] == 2001


def test_pycocotools_reads_what_is_written(tmp_path, capsys):
    coco_tools = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed: pip install pycocotools")
    vg(tmp_path / "data")
    out = tmp_path / "out"
    assert (
        main(["data", "convert", "--data", "vg", "--data-root", str(tmp_path / "data"), "--output-dir", str(out)]) == 0
    )
    index = coco_tools.COCO(out / "annotations/instances_val.json")
    assert len(index.getImgIds()) == 6 and len(index.getAnnIds()) == 18
    assert {row["name"] for row in index.loadCats(index.getCatIds())} == {"red.n.01", "blue.n.01", "green.n.01"}
    assert index.loadAnns(index.getAnnIds())[0]["area"] > 100


def test_a_data_set_is_not_written_over_itself(tmp_path, refused):
    coco(tmp_path / "data")
    before = (tmp_path / "data/annotations/instances_train2017.json").read_bytes()
    words = ["data", "convert", "--data-root", tmp_path / "data", "--output-dir"]
    refused([*words, tmp_path / "data/../data"], "--output-dir", "is the data set itself; give another folder")
    assert (tmp_path / "data/annotations/instances_train2017.json").read_bytes() == before
    (tmp_path / "file").write_text("")
    refused([*words, tmp_path / "file"], "cannot be written")
    rows = tables([], [image_row(1, name="../train/x.png")])
    make(tmp_path / "odd", rows)
    make(tmp_path / "odd", rows, "val")
    os.makedirs(tmp_path / "odd/images/train", exist_ok=True)
    refused(
        ["data", "convert", "--data-root", tmp_path / "odd", "--output-dir", tmp_path / "new"],
        "lies outside its folder",
    )


def contents(root):
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()}


@pytest.mark.parametrize("images", ["link", "copy"])
@pytest.mark.parametrize("export", ["voc", "roboflow", "linked"])
def test_images_that_lie_where_they_would_be_put_are_kept(tmp_path, export, images, refused):
    if export == "voc":  # XML files beside the images, and the output around them
        voc(tmp_path / "made")
        (tmp_path / "out").mkdir()
        shutil.move(tmp_path / "made/JPEGImages", tmp_path / "out/train")
        for path in (tmp_path / "made/Annotations").iterdir():
            path.rename(tmp_path / "out/train" / path.name)
        words = ["--data", "voc", "--data-root", tmp_path / "out/train"]
    else:
        root = tmp_path / ("out" if export == "roboflow" else "mine")
        roboflow(root / "inner", ["train", "valid"])
        words = ["--data-root", root / "inner"]
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out/train").symlink_to(root / "inner/train")  # the same folder by another name
    before = contents(tmp_path)
    words = ["data", "convert", *words, "--output-dir", tmp_path / "out", "--images", images]
    refused(words, "--output-dir: the image ", "of the data set would be overwritten; give another folder")
    assert contents(tmp_path) == before and len(before) > 8
    assert not (tmp_path / "out/annotations").exists()


def test_an_image_that_cannot_be_copied_leaves_what_stood_there(tmp_path, monkeypatch, refused):
    coco(tmp_path / "data")
    path = tmp_path / "out/train/000000000001.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"of before")

    def full(source, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    words = ["data", "convert", "--data-root", tmp_path / "data", "--output-dir", tmp_path / "out", "--images", "copy"]
    refused(words, "cannot be written (No space left on device)", "what stood there is kept")
    assert contents(tmp_path / "out") == {path: b"of before"}


@pytest.mark.parametrize("part", ["train", "val"])
def test_annotations_that_are_there_are_not_overwritten(tmp_path, part, refused):
    coco(tmp_path / "data")
    path = tmp_path / f"out/annotations/instances_{part}.json"
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    before = contents(tmp_path)
    words = ["data", "convert", "--data-root", tmp_path / "data", "--output-dir", tmp_path / "out", "--images", "none"]
    refused(words, f"{path}: is there already; give --output-dir another folder")
    assert contents(tmp_path) == before
