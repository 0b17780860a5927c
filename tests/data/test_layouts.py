"""Exports of labelling tools in their own layouts: every one is found, read and trained on as it comes."""

import json
import logging
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from irnet.config import DataConfig
from irnet.data.coco import CocoDataset
from irnet.data.layouts import Share, annotation_files
from irnet.data.registry import open_dataset
from irnet.errors import InputError


def table(names, first=1, supercategory=None, **more):
    """A COCO table with two boxes in each image."""
    group = {} if supercategory is None else {"supercategory": supercategory}
    images = [{"id": first + i, "file_name": name, "width": 64, "height": 48} for i, name in enumerate(names)]
    annotations = [
        {"id": first + 2 * i + k, "image_id": image["id"], "category_id": first + k, "bbox": [4 + 9 * k, 5, 20, 30.5]}
        for i, image in enumerate(images)
        for k in (0, 1)
    ]
    categories = [{"id": first + k, "name": name, **group} for k, name in enumerate(("cup", "dog"))]
    return {"images": images, "annotations": annotations, "categories": categories, "info": {}, **more}


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def draw(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(path)


def roboflow(root, splits=("train", "valid", "test")):
    for split in splits:
        names = [f"{split}_{i}_jpg.rf.abc.jpg" for i in range(4)]
        rows = table(names, first=0, supercategory="none")
        write(root / split / "_annotations.coco.json", rows)
        draw(root / split, *names)
    (root / "README.roboflow.txt").write_text("exported")


def roboflow_train_only(root):
    roboflow(root, ["train"])


def cvat(root):
    names = [f"frame_{i:06d}.PNG" for i in range(8)]
    write(root / "annotations/instances_default.json", table(names, supercategory=""))
    draw(root / "images", *names)


def cvat_subsets(root):
    for subset in ("Train", "Validation"):
        write(root / f"annotations/instances_{subset}.json", table([f"{i}.png" for i in range(4)], supercategory=""))
        draw(root / "images" / subset, *(f"{i}.png" for i in range(4)))


def label_studio(root, separator="/"):
    names = [f"images/ab12-shot_{i}.jpg" for i in range(8)]
    write(root / "result.json", table([name.replace("/", separator) for name in names], first=0))
    draw(root, *names)


def label_studio_windows(root):
    label_studio(root, "\\")


def labelme(root):
    names = [f"JPEGImages/{i}.jpg" for i in range(8)]
    write(root / "annotations.json", table(names, first=0, type="instances"))
    draw(root, *names)
    draw(root, "Visualization/0.jpg")


def labelme_split(root):
    for split in ("train", "val"):
        write(root / f"{split}.json", table([f"{split}{i}.jpg" for i in range(4)]))
        draw(root, *(f"{split}{i}.jpg" for i in range(4)))


def lvis(root, folder=""):
    for split in ("train", "val"):
        content = table([f"{i:012d}.jpg" for i in range(4)])
        for i, row in enumerate(content["images"]):  # the validation images lie in both folders
            image_folder = "train2017" if split == "train" or i % 2 else "val2017"
            row["coco_url"] = f"http://images.example.org/{image_folder}/{row.pop('file_name')}"
            draw(root, "/".join(row["coco_url"].split("/")[-2:]))
        write(root / folder / f"lvis_v1_{split}.json", content)
    write(root / folder / "lvis_v1_image_info_test_dev.json", {"images": [], "categories": []})


def lvis_annotations(root):
    lvis(root, "annotations")


def fiftyone(root):
    for split in ("train", "test"):
        write(root / split / "labels.json", table([f"{split}{i}.jpg" for i in range(4)]))
        draw(root / split / "data", *(f"{split}{i}.jpg" for i in range(4)))


def coco_2014(root):
    for split in ("train2014", "val2014"):
        names = [f"COCO_{split}_{i:012d}.jpg" for i in range(4)]
        write(root / f"annotations/instances_{split}.json", table(names))
        write(root / f"annotations/captions_{split}.json", {"images": [], "annotations": []})
        draw(root / split, *names)


def other_machine(root):
    names = [f"shot_{i}.jpg" for i in range(8)]
    write(root / "dataset.json", table([f"C:\\Users\\me\\photos\\{name}" for name in names]))
    draw(root / "images", *names)


def accents(root):
    names = [f"caf\u00e9_{i}.jpg" for i in range(8)]
    write(root / "result.json", table([unicodedata.normalize("NFD", name) for name in names]))
    draw(root / "images", *names)


# by export: the training and the held-out split, and the images in each
EXPORTS = {
    roboflow: ("train", "valid", 4, 4),
    roboflow_train_only: ("train", "train", 3, 1),
    cvat: ("default", "default", 7, 1),
    cvat_subsets: ("Train", "Validation", 4, 4),
    label_studio: ("result", "result", 7, 1),
    label_studio_windows: ("result", "result", 7, 1),
    labelme: ("annotations", "annotations", 7, 1),
    labelme_split: ("train", "val", 4, 4),
    lvis: ("lvis_v1_train", "lvis_v1_val", 4, 4),
    lvis_annotations: ("lvis_v1_train", "lvis_v1_val", 4, 4),
    fiftyone: ("train", "test", 4, 4),
    coco_2014: ("train2014", "val2014", 4, 4),
    other_machine: ("dataset", "dataset", 7, 1),
    accents: ("result", "result", 7, 1),
}


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.__name__)
def test_exports_are_read_as_they_come(tmp_path, export):
    export(tmp_path)
    parts = [open_dataset(DataConfig(root=str(tmp_path)), part) for part in ("train", "val")]
    assert (*(data.split for data in parts), *map(len, parts)) == EXPORTS[export]
    for data in parts:
        assert data.classes == ["cup", "dog"] and data.supercategories == ["", ""]
        for sample in data:
            assert sample.image.shape == (3, 48, 64) and sample.boxes.tolist() == [[4, 5, 24, 35.5], [13, 5, 33, 35.5]]
    if parts[0].path == parts[1].path:
        assert not set(parts[0].image_ids) & set(parts[1].image_ids)


@pytest.mark.parametrize("export", [roboflow, cvat, label_studio, labelme, lvis], ids=lambda export: export.__name__)
def test_train_takes_an_export(tmp_path, export, irnet):
    export(tmp_path / "export")
    data = ["--data", "coco", "--data-root", tmp_path / "export"]
    run = ["--output-dir", tmp_path / "run", "--steps", "1", "-b", "2", "-j", "0"]
    tiny = ["model.memory_channels=4", "model.hidden=8", "model.backbone_channels=4", "model.graph_channels=4"]
    irnet.run(["train", "--small", *data, *run, *tiny])
    assert len(list((tmp_path / "run/vis").iterdir())) == min(4, EXPORTS[export][3])
    irnet.run(["eval", "--checkpoint", tmp_path / "run", "-j", "0"])
    irnet.run(["data", "check", *data])
    irnet.run(["graph", "build", *data])


def test_a_share_is_exact_seeded_and_moves_few_images_when_some_are_added():
    names = [f"{i}.jpg" for i in range(200)]
    held_out = Share(True, 0.2, 0).select(names)
    assert held_out.sum() == 40 and (Share(False, 0.2, 0).select(names) == ~held_out).all()
    assert (Share(True, 0.2, 1).select(names) != held_out).any()
    more = Share(True, 0.2, 0).select([f"new{i}.jpg" for i in range(20)] + names)[20:]
    assert (more != held_out).sum() < 10
    assert Share(True, 0.01, 0).select(["a", "b", "c"]).sum() == 1  # never none
    assert Share(True, 0.99, 0).select(["a", "b", "c"]).sum() == 2  # never all


def test_settings_of_the_share(tmp_path, caplog):
    cvat(tmp_path)
    config = DataConfig(root=str(tmp_path), val_share=0.5, split_seed=3)
    with caplog.at_level(logging.INFO, logger="irnet"):
        train, val = (open_dataset(config, part) for part in ("train", "val"))
    assert len(train) == len(val) == 4 and "(the 0.5 held out by seed 3): 4 images" in caplog.text
    config.val_split = "default"  # named: all of it
    assert len(open_dataset(config, "val")) == 8
    config.train_split = "default"
    assert len(open_dataset(config, "train")) == len(open_dataset(config, "val")) == 8


def test_a_file_within_the_root_can_be_named(tmp_path):
    cvat(tmp_path)
    shutil.copy(tmp_path / "annotations/instances_default.json", tmp_path / "mine.json")
    assert len(CocoDataset(tmp_path, "mine.json")) == 8


def test_cocos_files_named_by_path_find_their_images(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / f"annotations/instances_{split}.json", table([f"{split}.jpg"]))
        draw(tmp_path / split, f"{split}.jpg")
    for split in ("train", "val"):
        data = CocoDataset(tmp_path, f"annotations/instances_{split}.json")
        assert data.folder == tmp_path / split and not data.missing


def test_a_split_named_by_its_path_is_not_also_chosen_for_the_other_part(tmp_path):
    roboflow(tmp_path, ["train", "test"])
    for path in ("test/_annotations.coco.json", "train/../test/_annotations.coco.json"):
        config = DataConfig(root=str(tmp_path), train_split=path)
        train, val = (open_dataset(config, part) for part in ("train", "val"))
        assert len(train) == 3 and len(val) == 1 and not set(train.file_names) & set(val.file_names)
        config = DataConfig(root=str(tmp_path), val_split="train/_annotations.coco.json")
        with pytest.raises(InputError, match=r"name the one to train on by data\.train_split"):
            open_dataset(config, "train")


def test_one_image_cannot_be_split(tmp_path):
    write(tmp_path / "result.json", table(["a.jpg"]))
    draw(tmp_path, "a.jpg")
    with pytest.raises(InputError, match="its one image cannot be trained on and held out"):
        open_dataset(DataConfig(root=str(tmp_path)), "train")


def test_a_lone_split_for_evaluation_is_not_trained_on(tmp_path):
    roboflow(tmp_path, ["test"])
    config = DataConfig(root=str(tmp_path))
    assert len(open_dataset(config, "val")) == 4
    with pytest.raises(InputError, match=r"name the one to train on by data\.train_split: test"):
        open_dataset(config, "train")
    config.train_split = "test"
    assert [len(open_dataset(config, part)) for part in ("train", "val")] == [3, 1]


def test_other_json_files_are_no_annotations(tmp_path):
    label_studio(tmp_path)
    for name in ("class_graph.json", "package.json", "notes.json"):
        write(tmp_path / name, {"images": 1})
    (tmp_path / "empty.json").touch()
    assert list(annotation_files(tmp_path)) == ["result"]


@pytest.mark.parametrize("twins", ["a/x.jpg", "b\\x.jpg"])
def test_names_of_two_images_never_become_one(tmp_path, twins):
    write(tmp_path / "result.json", table(["c/x.jpg", twins]))
    draw(tmp_path, "x.jpg")
    with pytest.raises(InputError, match="no such image file"):
        open_dataset(DataConfig(root=str(tmp_path)), "train")


@pytest.mark.parametrize("inside", [True, False])
def test_a_split_may_be_an_absolute_path(tmp_path, monkeypatch, inside):
    monkeypatch.chdir(tmp_path)
    cvat_subsets(tmp_path / "data")
    path = tmp_path / ("data" if inside else "mine") / "own.json"
    write(path, table([f"{i}.png" for i in range(3)]))
    draw(tmp_path / "data/images", *(f"{i}.png" for i in range(3)))
    data = open_dataset(DataConfig(root="data" if inside else str(tmp_path / "data"), train_split=str(path)), "train")
    assert len(data) == 3 and data.path == path and data[0].boxes[0].tolist() == [4, 5, 24, 35.5]
