"""The class graph from ADE20K's annotations: parts and hypernyms of 2021, masks of 2016."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from irnet.class_graphs.ade20k import read_annotations, relate_by_ade20k
from irnet.errors import InputError
from tests.class_graphs.tools import SAMPLE, thing, write_2021

CAR = "car, auto, automobile, machine, motorcar"
VEHICLE = ["motor vehicle, automotive vehicle", "entity"]


def named(classes, relations, name):
    return {(classes[a], classes[b]): round(weight, 6) for (a, b), weight in relations[name].items()}


@pytest.mark.skipif(not SAMPLE.exists(), reason="../shared/data/ade20k_2021_sample is absent")
def test_the_published_sample():
    classes = ["wheel", "car", "van", "truck", "building", "window", "machine", "umbrella", "door"]
    relations = relate_by_ade20k(classes, SAMPLE)
    # "machine" is a word for a car, but no object is named so, and a car's synset does not begin with it
    assert named(classes, relations, "is_kind_of") == {("van", "truck"): 1.0}
    assert named(classes, relations, "has_kind") == {("truck", "van"): 1.0}
    parts = named(classes, relations, "is_part_of")
    assert parts[("wheel", "car")] == 0.5  # two wheels, a door and a window
    assert set(parts) == {
        ("wheel", "car"),
        ("door", "car"),
        ("window", "car"),
        ("window", "building"),
        ("window", "door"),
    }
    assert named(classes, relations, "has_part")["building", "window"] == round(4 / 6, 6)
    often = named(classes, relate_by_ade20k(classes, SAMPLE, least=2), "is_part_of")
    assert often == {("wheel", "car"): 0.5, ("window", "building"): 1.0}
    only = relate_by_ade20k(classes, SAMPLE, images={"ADE_train_00016900"})
    assert not only["is_part_of"] and len(only["is_kind_of"]) == 1


def test_kinds_go_to_the_nearest_class(tmp_path):
    truck = ["truck, motortruck", *VEHICLE]
    write_2021(
        tmp_path / "training/a/ADE_train_1.json",
        thing(0, "van", "van", ["van", *truck]),
        thing(7, "pickup", "pickup, pickup truck", ["pickup, pickup truck", "van", *truck]),
        thing(8, "cars", CAR, [CAR, *VEHICLE]),
        thing(9, "car", CAR, [CAR, *VEHICLE]),
        thing(10, "taxi", "cab, hack", ["cab, hack", CAR, *VEHICLE]),
        thing(11, "café", "café", [], whole=7),
        encoding="latin-1",
    )
    classes = ["car", "cars", "taxi", "pickup", "van", "truck", "motor vehicle", "café"]
    relations = relate_by_ade20k(classes, tmp_path)
    assert named(classes, relations, "is_kind_of") == {
        ("car", "motor vehicle"): 1.0,
        ("cars", "motor vehicle"): 1.0,
        ("taxi", "car"): 1.0,
        ("taxi", "cars"): 1.0,
        ("pickup", "van"): 1.0,
        ("van", "truck"): 1.0,  # no truck is annotated
    }
    assert named(classes, relations, "is_part_of") == {("café", "pickup"): 1.0}


def test_a_class_whose_objects_have_another_synset_is_not_its_first_word(tmp_path):
    plant = "plant, flora"
    write_2021(
        tmp_path / "ADE_train_1.json",
        thing(0, "plant", "plant, works", ["plant, works", "building", "entity"]),
        thing(1, "tree", "tree", ["tree", plant, "entity"]),
    )
    assert not relate_by_ade20k(["plant", "tree"], tmp_path)["is_kind_of"]


def test_validation_images_count_only_when_they_are_named(tmp_path):
    write_2021(tmp_path / "validation/ADE_val_1.json", thing(0, "car"), thing(3, "wheel", whole=0))
    write_2021(tmp_path / "training/ADE_train_1.json", thing(0, "car"))
    assert not relate_by_ade20k(["wheel", "car"], tmp_path)["is_part_of"]
    assert relate_by_ade20k(["wheel", "car"], tmp_path, images={"ADE_val_1"})["is_part_of"] == {(0, 1): 1.0}


def test_images_of_one_name_in_two_folders_are_told_apart_by_their_paths(tmp_path):
    for folder in "ab":
        write_2021(tmp_path / folder / "street.1.json", thing(0, folder))
        Image.new("RGB", (4, 3)).save(tmp_path / folder / "street.1.jpg")
    assert [one.raw_name for (one,) in read_annotations(tmp_path, {"b/street.1"})] == ["b"]
    assert [one.raw_name for (one,) in read_annotations(tmp_path, {"street.1"})] == ["a", "b"]


# ------------------------------------------------------------------------------------------------------------- 2016


def write_2016(folder, rows, masks):
    """An image of the 2016 release; masks hold numbers of objects, which are written as that release codes them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f'{number:03d} # {level} # 0 # {name} # {raw} # ""' for level, number, name, raw in rows]
    (folder / "ADE_train_00000001_atr.txt").write_text("\n".join(lines) + "\n")
    for level, mask in enumerate(masks):
        n = sum(row[0] == level for row in rows)
        blue = np.floor(255 * np.array(mask) / max(n, 1) + 0.5).astype(np.uint8)
        picture = np.stack([np.full_like(blue, 10), blue * 0 + 7, blue], axis=-1)
        ending = "seg" if level == 0 else f"parts_{level}"
        Image.fromarray(picture).save(folder / f"ADE_train_00000001_{ending}.png")


ROWS = [
    (0, 1, "sky", "sky"),  # hidden: no pixel is of it, and none is background
    (0, 2, CAR, "car"),
    (0, 3, "building, edifice", "house"),
    (1, 1, "window", "window"),
    (1, 2, "wheel", "wheel"),
    (2, 1, "rim", "rim"),
]
MASKS = [
    [[3, 3, 3, 2], [3, 3, 2, 2], [3, 3, 2, 2]],
    [[0, 1, 1, 1], [0, 0, 0, 2], [0, 0, 2, 2]],
    [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]],
]


def test_parts_by_the_masks_of_2016(tmp_path):
    write_2016(tmp_path / "images/training/s/street", ROWS, MASKS)
    classes = ["window", "wheel", "rim", "house", "car", "sky"]
    relations = relate_by_ade20k(classes, tmp_path)
    # Ranks among the values that occur would call the car sky.
    assert named(classes, relations, "is_part_of") == {
        ("window", "house"): 1.0,
        ("wheel", "car"): 1.0,
        ("rim", "wheel"): 1.0,
    }
    assert not relations["is_kind_of"]


PARTS = {("window", "house"): 1.0, ("wheel", "car"): 1.0, ("rim", "wheel"): 1.0}


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line,
        lambda line: line.replace(" # ", "#"),
        lambda line: line.rpartition(" # ")[0],
        lambda line: "\ufeff" * line.startswith("001 # 0") + line,
    ],
    ids=["as it is", "without blanks", "five fields", "a byte-order mark"],
)
def test_lists_of_2016_that_the_data_set_reads(change, tmp_path):
    rows = [(0, 1, CAR, "car"), (0, 2, "building, edifice", "house"), *ROWS[3:]]
    write_2016(tmp_path, rows, [np.maximum(np.array(MASKS[0]) - 1, 0), *MASKS[1:]])
    path = tmp_path / "ADE_train_00000001_atr.txt"
    path.write_text("\n".join(map(change, path.read_text().splitlines())), encoding="utf-8")
    for file in tmp_path.iterdir():
        file.rename(file.with_name(file.name.replace("ADE_train_00000001", "street.1")))
    Image.new("RGB", (4, 3)).save(tmp_path / "street.1.PNG")
    classes = ["window", "wheel", "rim", "house", "car"]
    assert named(classes, relate_by_ade20k(classes, tmp_path), "is_part_of") == PARTS


def test_masks_of_2016_with_the_numbers_themselves(tmp_path):
    write_2016(tmp_path, ROWS[1:], MASKS)
    for level, ending in enumerate(("seg", "parts_1", "parts_2")):
        blue = np.array(MASKS[level], np.uint8)
        Image.fromarray(np.stack([blue] * 3, axis=-1)).save(tmp_path / f"ADE_train_00000001_{ending}.png")
    classes = ["window", "wheel", "rim", "house", "car"]
    assert named(classes, relate_by_ade20k(classes, tmp_path), "is_part_of") == PARTS


def test_both_releases_in_one_folder(tmp_path):
    write_2016(tmp_path / "a", ROWS, MASKS)
    write_2016(tmp_path / "b", ROWS, MASKS)
    write_2021(tmp_path / "b/ADE_train_00000001.json", thing(0, "car"), thing(1, "wheel", whole=0))  # comes before it
    shutil.copytree(tmp_path / "b", tmp_path / ".hidden")
    assert [len(objects) for objects in read_annotations(tmp_path)] == [len(ROWS), 2]


def test_json_that_the_data_set_reads(tmp_path):
    car, wheel, mirror = thing(0, "car"), thing(3, "wheel", [], ["wheel, disc", "entity"], whole=0), thing(4, "mirror")
    del mirror["parts"]["ispartof"], mirror["id"], mirror["name"], mirror["hypernym"]
    path = tmp_path / "street.json"
    write_2021(path, car, wheel, mirror, encoding="utf-8-sig")
    (tmp_path / "other.json").write_text("[]")  # beside no image
    with pytest.raises(InputError, match=r"holds neither ADE_\*\.json"):
        relate_by_ade20k(["wheel", "car"], tmp_path)
    Image.new("RGB", (4, 3)).save(tmp_path / "street.jpg")
    assert relate_by_ade20k(["wheel", "car"], tmp_path)["is_part_of"] == {(0, 1): 1.0}
    (objects,) = read_annotations(tmp_path)
    assert [(one.raw_name, one.name, one.hypernyms, one.whole) for one in objects] == [
        ("car", "car", (), None),
        ("wheel", "wheel", ("wheel, disc", "entity"), ("car", "car")),
        ("mirror", "mirror", (), None),
    ]
    mirror["hypernym"] = "mirror"  # a list of one, as MATLAB writes it; and an image of one object
    path.write_text(json.dumps({"annotation": {"object": mirror}}))
    assert [one.hypernyms for (one,) in read_annotations(tmp_path)] == [("mirror",)]


def test_what_is_wrong_with_an_annotation(tmp_path):
    with pytest.raises(InputError, match=r"holds neither ADE_\*\.json"):
        relate_by_ade20k(["car"], tmp_path)
    write_2016(tmp_path, ROWS, MASKS)
    (tmp_path / "ADE_train_00000001_parts_2.png").unlink()
    with pytest.raises(InputError, match=r"parts_2.png: no such image file"):
        relate_by_ade20k(["car"], tmp_path)
    Image.new("RGB", (3, 3)).save(tmp_path / "ADE_train_00000001_parts_2.png")
    with pytest.raises(InputError, match=r"_atr.txt: the masks of levels 1 and 2 differ in size"):
        relate_by_ade20k(["car"], tmp_path)
    path = tmp_path / "ADE_train_00000001_atr.txt"
    path.write_text(path.read_text() + "007 # 0 # sky\n")
    with pytest.raises(InputError, match=r"_atr.txt: line 7 is not NUMBER # LEVEL"):
        relate_by_ade20k(["car"], tmp_path)
    with pytest.raises(InputError, match="none of its 1 annotated images"):
        relate_by_ade20k(["car"], tmp_path, images={"other"})


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"annotation": {}}', '{"annotation": {"object": [{"id": 1}]}}', json.dumps(
        {"annotation": {"object": [thing(1, "wheel", whole=5)]}}), json.dumps(
        {"annotation": {"object": [thing(1, ["wheel"], "wheel")]}})],
)  # fmt: skip
def test_json_that_is_no_annotation(text, tmp_path):
    (tmp_path / "ADE_train_1.json").write_text(text)
    with pytest.raises(InputError, match=r"ADE_train_1.json: is no annotation of ADE20K 2021 \("):
        relate_by_ade20k(["wheel"], tmp_path)
