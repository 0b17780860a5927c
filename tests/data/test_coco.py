"""COCO: order, layouts, attributes, missing files, and agreement with a real annotation file."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from irnet.class_graphs.annotations import derive_class_graph
from irnet.data.coco import CocoDataset
from irnet.data.scenes import Scenes
from irnet.errors import InputError
from tests.data.tools import box_row, image_row, make, refused, tables

TINY = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "coco_tiny"
needs_tiny = pytest.mark.skipif(not TINY.is_dir(), reason=f"sample data absent: {TINY}")


def test_reads_sorts_and_maps(tmp_path):
    images = [image_row(9), image_row(2, 30, 50), image_row(5)]
    data = tables(
        [box_row(40, 9, [1, 2, 10, 20], 7), box_row(31, 9, [3, 4, 5, 6], 1), box_row(8, 2, [0, 0, 30, 50])], images
    )
    make(tmp_path, data)
    dataset = CocoDataset(tmp_path, "train")
    assert dataset.classes == ["cup", "dog"]
    assert dataset.supercategories == ["kitchen", "animal"]
    assert [dataset[i].name for i in range(3)] == ["000002.png", "000005.png", "000009.png"]
    sample = dataset[2]
    assert sample.boxes.tolist() == [[3, 4, 8, 10], [1, 2, 11, 22]]
    assert sample.labels.tolist() == [0, 1]
    assert (sample.boxes.dtype, sample.labels.dtype, sample.image.dtype) == (torch.float32, torch.int64, torch.uint8)
    assert sample.image.shape == (3, 40, 60)
    assert (sample.image == 9).all()
    assert sample.attributes == {}
    empty = dataset[1]
    assert (empty.boxes.shape, empty.labels.shape, empty.labels.dtype) == ((0, 4), (0,), torch.int64)
    assert dataset.without_boxes == 1
    assert dataset.image_sizes().tolist() == [[50, 30], [40, 60], [40, 60]]
    assert [labels.tolist() for labels in dataset.image_labels()] == [[0], [], [0, 1]]
    assert len(list(dataset)) == 3
    sample.boxes.zero_()
    assert dataset[-1].boxes.tolist() == [[3, 4, 8, 10], [1, 2, 11, 22]]


def test_attributes_follow_their_boxes(tmp_path):
    rows = [box_row(2, 1, [2, 0, 5, 5], kind="b"), box_row(1, 1, [1, 0, 5, 5], kind="a"), box_row(3, 1, [3, 0, 5, 5])]
    rows.insert(0, box_row(0, 1, [3, 0, 0, 5], kind="skipped"))
    make(tmp_path, tables(rows))
    assert CocoDataset(tmp_path, "train")[0].attributes == {}  # nobody has named one
    assert Scenes(tmp_path, "train")[0].attributes == {"kind": ["a", "b", ""]}
    make(tmp_path, tables(rows[-1:]))
    assert Scenes(tmp_path, "train")[0].attributes == {}  # as of scenes in whose annotations none is written


def test_no_annotations_at_all(tmp_path):
    make(tmp_path, tables([]))
    dataset = CocoDataset(tmp_path, "train", max_regions=3)
    assert dataset[0].boxes.shape == (0, 4)
    assert dataset.without_boxes == 1


@pytest.mark.parametrize(
    ("split", "folder", "name"),
    [
        ("train2017", "train2017", "000000000001.jpg"),
        ("train2017", "images/train2017", "000000000001.jpg"),
        ("val2014", "val2014", "COCO_val2014_000000000001.jpg"),
        ("minival2014", "val2014", "COCO_val2014_000000000001.jpg"),
        ("minival2014", "images/val2014", "COCO_val2014_000000000001.jpg"),
        ("val", "images", "000001.png"),
        ("my-own split", "images", "sub/000001.png"),
    ],
)
def test_layouts(tmp_path, split, folder, name):
    make(tmp_path, tables([box_row(1, 1, [1, 2, 3, 4])], [image_row(1, name=name)]), split, folder)
    sample = CocoDataset(tmp_path, split)[0]
    assert sample.name == name
    assert sample.boxes.tolist() == [[1, 2, 4, 6]]


def test_the_folder_that_holds_the_images_wins(tmp_path):
    make(tmp_path, tables(), folder="images")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "000777.png").touch()
    assert CocoDataset(tmp_path, "train").folder == tmp_path / "images"


@pytest.mark.parametrize("mode", ["L", "P", "CMYK"])
def test_modes_become_rgb(tmp_path, mode):
    make(tmp_path, tables([], [image_row(1, name="a.tif")]))
    Image.new("L", (60, 40), 255).convert("RGB").convert(mode).save(tmp_path / "images/train/a.tif")
    assert (CocoDataset(tmp_path, "train")[0].image == 255).all()
    assert CocoDataset(tmp_path, "train")[0].image.shape == (3, 40, 60)


def test_pickles_small(tmp_path):
    make(tmp_path, tables([box_row(1, 1, [1, 2, 3, 4], segmentation=[[1.5] * 5000])]))
    data = pickle.dumps(CocoDataset(tmp_path, "train"))
    assert len(data) < 5000  # what worker processes get: no segmentation, nothing of pycocotools
    assert pickle.loads(data)[0].boxes.tolist() == [[1, 2, 4, 6]]


def test_refuses_a_missing_folder(tmp_path):
    error = refused(tmp_path / "none")
    assert (error.where, error.trouble) == (str(tmp_path / "none"), "no such folder")
    assert "--data-root" in error.cure


def test_refuses_a_missing_annotation_file_and_lists_the_splits(tmp_path):
    make(tmp_path, tables(), "val2017")
    make(tmp_path, tables(), "minival")
    (tmp_path / "annotations" / "captions_val2017.json").touch()
    error = refused(tmp_path)
    assert error.where.endswith("annotations/instances_train.json")
    assert error.cure == "choose one of the splits there by data.train_split and data.val_split: minival, val2017"
    (tmp_path / "empty").mkdir()
    assert "ROOT/annotations/instances_SPLIT.json" in refused(tmp_path / "empty").cure


def test_refuses_missing_images_before_the_first_is_read(tmp_path):
    make(tmp_path, tables(images=[image_row(n) for n in range(1, 6)]))
    folder = tmp_path / "images" / "train"
    for number in (2, 4):
        (folder / f"{number:06d}.png").unlink()
    with pytest.raises(InputError) as caught:
        CocoDataset(tmp_path, "train")
    assert caught.value.where == str(folder / "000002.png")
    assert "no such image file (2 of the 5 in instances_train.json are missing)" in caught.value.trouble
    assert "unpack the images there" in caught.value.cure


def test_refuses_where_no_image_folder_exists(tmp_path):
    make(tmp_path, tables())
    shutil.rmtree(tmp_path / "images")
    error = refused(tmp_path)
    assert error.where == str(tmp_path / "000001.png")
    assert "no such image file (1 of the 1 in instances_train.json are missing)" in error.trouble


@needs_tiny
@pytest.mark.parametrize(("split", "images", "crowds", "empty"), [("train2017", 32, 4, 2), ("val2017", 6, 1, 0)])
def test_tiny_agrees_with_its_annotation_file(split, images, crowds, empty):
    dataset = CocoDataset(TINY, split)
    raw = json.loads((TINY / "annotations" / f"instances_{split}.json").read_text())
    assert (len(dataset), len(dataset.classes)) == (images, 80)
    assert (dataset.classes[0], dataset.classes[79]) == ("person", "toothbrush")
    assert dataset.skipped["iscrowd"] == crowds
    names = {row["id"]: row["name"] for row in raw["categories"]}
    ids = {row["file_name"]: row["id"] for row in raw["images"]}
    total = 0
    for sample in dataset:
        rows = [row for row in raw["annotations"] if row["image_id"] == ids[sample.name] and not row["iscrowd"]]
        rows.sort(key=lambda row: row["id"])
        assert [dataset.classes[label] for label in sample.labels] == [names[row["category_id"]] for row in rows]
        height, width = sample.image.shape[1:]
        for box, row in zip(sample.boxes.tolist(), rows, strict=True):
            x, y, w, h = row["bbox"]
            assert box == pytest.approx([x, y, min(x + w, width), min(y + h, height)], abs=1e-3)
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        total += len(rows)
    assert total + sum(dataset.skipped.values()) == len(raw["annotations"])
    assert dataset.without_boxes >= empty
    graph = derive_class_graph(dataset)
    src, dst, weight = graph.relations["co_occurs"]
    assert ((weight > 0) & (weight <= 1)).all()
    assert (src != dst).all()


@pytest.mark.parametrize("group", ["none", "None", " none ", "", None, "null", "N/A", "undefined"])
def test_no_supercategory_is_no_group(tmp_path, group):
    rows = [box_row(i, 1, [1, 2, 3, 4], category=i) for i in (1, 2)]
    make(tmp_path, tables(rows, categories=[(1, "a", group), (2, "b", group), (3, "c", group)]))
    data = CocoDataset(tmp_path, "train")
    assert data.supercategories == ["", "", ""]
    graph = derive_class_graph(data)
    assert len(graph.relations["same_supercategory"][0]) == 0 and len(graph.relations["co_occurs"][0]) == 2
