"""Visual Genome: objects that are merged, moved, unnamed or cut, the versions, splits, and files that are refused."""

import json

import pytest
from PIL import Image

from irnet.config import DataConfig
from irnet.data.visual_genome import VisualGenome
from irnet.errors import InputError


def thing(number, box, synsets=("cup.n.01",), **more):
    x, y, w, h = box
    own = {"object_id": number, "x": x, "y": y, "w": w, "h": h, "names": ["a cup"], "synsets": list(synsets)}
    return own | {"merged_object_ids": []} | more


def make(root, images, folder="VG_100K", **files):
    """Images by number, with their objects; half of the images lie in a second folder."""
    rows, entries = [], []
    for number, objects in images.items():
        own = f"{folder}{'' if number % 2 else '_2'}"
        (root / own).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40)).save(root / own / f"{number}.jpg")
        url = f"https://cs.stanford.edu/people/rak248/{own.rpartition('/')[2]}/{number}.jpg"
        rows.append({"image_id": number, "url": url, "width": 60, "height": 40, "coco_id": None, "flickr_id": 1})
        entries.append({"image_id": number, "objects": objects, "image_url": url})
    contents = {"objects.json": entries, "image_data.json": rows} | files
    for name, content in contents.items():
        (root / name).write_text(content if isinstance(content, str) else json.dumps(content))


def opened(root, part="train", **more):
    return VisualGenome(DataConfig(name="vg", root=str(root), **({"min_count": 1} | more)), part)


def whole(root, **more):
    """All regions of all images, by the image's number: (class, box)."""
    regions = {}
    for part in ("train", "val"):
        data = opened(root, part, **more)
        for i in range(len(data)):
            sample = data[i]
            names = [data.classes[label] for label in sample.labels.tolist()]
            regions[int(data.image_ids[i])] = list(zip(names, sample.boxes.tolist(), strict=True))
    return regions


CUP = ("cup.n.01", [1, 2, 11, 22])
PLAIN = [thing(9, (1, 2, 10, 20))]
LISTED = {"synsets.txt": "cup.n.01:9\nmug.n.04:7\ndog.n.01:5\n"}


def test_an_object_with_several_synsets_is_one_box_with_the_most_frequent(tmp_path):
    """A box for each synset, as the original code has it, teaches the same pixels two labels."""
    images = {1: [thing(1, (1, 2, 10, 20), ["mug.n.04", "cup.n.01"])], 2: PLAIN, 3: PLAIN}
    make(tmp_path, images, **LISTED)
    regions = whole(tmp_path)
    assert regions == {1: [CUP], 2: [CUP], 3: [CUP]}


def test_one_object_may_have_several_boxes_but_a_box_once(tmp_path):
    """Object 1058534 has several boxes, object 1060269 several names."""
    moved = thing(1058534, (5, 6, 10, 20))
    again = thing(1060269, (20, 2, 10, 20), ["mug.n.04"], names=["mug"])
    objects = [thing(1058534, (1, 2, 10, 20)), moved, thing(1060269, (20, 2, 10, 20)), again]
    make(tmp_path, {1: objects, 2: PLAIN}, **LISTED)
    assert whole(tmp_path)[1] == [CUP, ("cup.n.01", [5, 6, 15, 26]), ("cup.n.01", [20, 2, 30, 22])]
    parts = [opened(tmp_path, part) for part in ("train", "val")]
    assert sum(data.skipped["an object's box a second time"] for data in parts) == 1


def test_boxes_that_begin_outside_are_cut_and_keep_their_far_sides(tmp_path):
    """As unsigned numbers they would begin at 65533."""
    make(tmp_path, {1: [thing(1, (-3, -2, 13, 24))], 2: [thing(2, (50, 30, 20, 20))], 3: [thing(3, (2.5, 1, 3.25, 4))]})
    boxes = {number: rows[0][1] for number, rows in whole(tmp_path).items()}
    assert boxes == {1: [0, 0, 10, 22], 2: [50, 30, 60, 40], 3: [2.5, 1, 5.75, 5]}
    assert sum(opened(tmp_path, part).clipped for part in ("train", "val")) == 2


def test_objects_without_a_synset_are_left_out_and_counted(tmp_path):
    make(tmp_path, {1: [*PLAIN, thing(2, (1, 2, 9, 9), [])], 2: PLAIN, 3: PLAIN})
    assert whole(tmp_path)[1] == [CUP]
    assert sum(opened(tmp_path, part).skipped["without a synset"] for part in ("train", "val")) == 1


def test_version_1_0_and_files_without_synsets(tmp_path):
    make(tmp_path, {1: PLAIN, 2: PLAIN, 3: PLAIN})
    for name in ("objects.json", "image_data.json"):
        text = (tmp_path / name).read_text().replace("image_id", "id").replace("object_id", "id")
        text = text.replace('["cup.n.01"]', '[{"synset_name": "cup.n.01", "entity_name": "cup"}]')
        (tmp_path / name).write_text(text)
    assert whole(tmp_path) == {1: [CUP], 2: [CUP], 3: [CUP]}
    names = {1: [thing(1, (1, 2, 10, 20), [])], 2: [thing(1, (1, 2, 10, 20), [], names=[], name="a cup")]}
    make(tmp_path, names)
    assert whole(tmp_path)[1] == [("a cup", CUP[1])] == whole(tmp_path)[2]


def test_splits_by_list_and_by_parts_of_the_objects(tmp_path):
    images = dict.fromkeys((4, 5, 6, 7), PLAIN)
    make(tmp_path, images, **{"train.txt": "5\n4\n7\n", "test.txt": "6\n"})
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert (train.split, train.image_ids.tolist(), val.split, val.image_ids.tolist()) == (
        "train",
        [4, 5, 7],
        "test",
        [6],
    )
    assert train.file_names == ["VG_100K_2/4.jpg", "VG_100K/5.jpg", "VG_100K/7.jpg"]
    assert opened(tmp_path, val_split="train").image_ids.tolist() == [4, 5, 7]
    entries = json.loads((tmp_path / "objects.json").read_text())
    for name in ("train.txt", "test.txt", "objects.json"):
        (tmp_path / name).unlink()
    (tmp_path / "train.json").write_text(json.dumps(entries[:3]))
    (tmp_path / "val.json").write_text(json.dumps(entries[3:]))
    assert opened(tmp_path).image_ids.tolist() == [4, 5, 6] and opened(tmp_path, "val").image_ids.tolist() == [7]
    assert len(opened(tmp_path)[0].labels) == 1


def test_classes_occur_often_enough_in_training_or_stand_in_a_list(tmp_path):
    dog = [thing(1, (1, 2, 9, 9), ["dog.n.01"])]
    make(tmp_path, {1: PLAIN, 2: PLAIN, 3: dog, 4: dog}, **{"train.txt": "1\n2\n3", "val.txt": "4"})
    data = opened(tmp_path, min_count=2)
    assert data.classes == ["cup.n.01"] and data.skipped == {"of a class that is left out": 1} and len(data) == 3
    (tmp_path / "synsets.txt").write_text("dog.n.01:5\ncup.n.01:4\nfox:n.01:7\n")
    assert opened(tmp_path, min_count=5).classes == ["dog.n.01", "fox:n.01"]


@pytest.mark.parametrize("folder", ["VG/VG_100K", "images/VG_100K", "VG_100K"])
def test_images_lie_where_people_unpack_them(tmp_path, folder):
    make(tmp_path, {1: PLAIN, 2: PLAIN}, folder, **{"train.txt": "1", "val.txt": "2"})
    assert len(opened(tmp_path)[0].labels) == 1
    (tmp_path / f"{folder}/1.jpg").unlink()
    with pytest.raises(InputError, match=r"VG_100K/1.jpg: no such image file \(1 of 1 are missing\); unpack"):
        opened(tmp_path)
    assert len(opened(tmp_path, "val")[0].labels) == 1


def test_a_later_version_is_preferred(tmp_path):
    make(tmp_path, {1: PLAIN, 2: PLAIN}, **{"objects_v1_2.json": json.dumps([])})
    with pytest.raises(InputError, match=r"objects_v1_2.json: has 0 images to train on"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "trouble"),
    [
        ("objects.json", lambda text: text[:-5], "is not as Visual Genome's are (Input data was truncated"),
        ("objects.json", lambda text: text.replace('"x": 1', '"x": "1"'), "Expected `float`, got `str` - at `$[0].obj"),
        ("objects.json", lambda text: text.replace('"w"', '"width"'), "missing required field `w`"),
        (
            "objects.json",
            lambda text: text.replace('"image_id"', '"number"'),
            "entry 0 (the first is 0) has no image_id",
        ),
        ("objects.json", lambda text: text.replace('"image_id": 1', '"image_id": 2'), "lists image 2 twice"),
        ("objects.json", lambda text: text.replace('"image_id": 1', '"image_id": 8'), "image 8 is not in image_data"),
        ("image_data.json", lambda text: text.replace('"width": 60', '"width": 0'), "image 1 has the size 0 x 40"),
        ("image_data.json", lambda text: text.replace("_2/2.jpg", "/1.jpg"), "more than one image has the url"),
        ("synsets.txt", lambda text: "cup.n.01 9", "holds the line 'cup.n.01 9'; write NAME:COUNT"),
        ("train.txt", lambda text: "1\n9\n", "lists 9, which has no annotations (1 of 2"),
    ],
)
def test_a_malformed_file_is_one_line(tmp_path, name, change, trouble):
    make(tmp_path, {1: PLAIN, 2: PLAIN}, **LISTED, **{"train.txt": "1\n2\n", "val.txt": "2\n"})
    path = tmp_path / name
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError) as caught:
        opened(tmp_path)
    assert caught.value.where == str(path) and trouble in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path):
    for name in ("objects.json", "image_data.json"):
        with pytest.raises(InputError, match=f"{name}: no such file; put objects.json and image_data.json there"):
            opened(tmp_path)
        (tmp_path / name).write_text("[]")
    with pytest.raises(InputError, match="gone: no such folder"):
        opened(tmp_path / "gone")
