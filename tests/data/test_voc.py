"""Pascal VOC: whose box it is, where pixels are counted from, layouts, and files that are refused."""

import gzip
import logging

import pytest
from PIL import Image

from irnet.config import DataConfig
from irnet.data import cache
from irnet.data.voc import Voc
from irnet.errors import InputError

SIZE = "<size><width>60</width><height>40</height><depth>3</depth></size>"


def frame(box):
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    return f"<bndbox>{''.join(f'<{side}>{value}</{side}>' for side, value in sides)}</bndbox>"


def thing(name="dog", box=(1, 1, 10, 20), inside=""):
    return f"<object><name>{name}</name>{inside}{frame(box)}</object>"


def add(root, name, *objects, size=SIZE, images="JPEGImages", xml="Annotations"):
    for folder in (images, xml):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40)).save(root / images / f"{name}.jpg")
    path = root / xml / f"{name}.xml"
    path.write_text(f"<annotation><folder>x</folder>{size}{''.join(objects)}</annotation>")
    return path


def opened(root, part="train", **more):
    return Voc(DataConfig(name="voc", root=str(root), **more), part)


def split(root, **names):
    folder = root / "ImageSets/Main"
    folder.mkdir(parents=True, exist_ok=True)
    for part, lines in names.items():
        (folder / f"{part}.txt").write_text("\n".join(lines) + "\n")


def test_boxes_count_pixels_from_one_with_both_ends_and_stay_floats(tmp_path):
    add(tmp_path, "a", thing(box=(1, 1, 60, 40)), thing(box=("45.70000076293945", 11.25, 50.5, 20)))
    add(tmp_path, "b", thing())
    split(tmp_path, train="a", val="b")
    boxes = opened(tmp_path)[0].boxes
    assert boxes[0].tolist() == [0, 0, 60, 40] and opened(tmp_path).clipped == 0
    assert boxes[1].tolist() == pytest.approx([44.70000076, 10.25, 50.5, 20])


def test_the_boxes_of_parts_are_not_the_objects(tmp_path):
    part = f"<part><name>head</name>{frame((3, 3, 5, 5))}</part>"
    order = (
        "<object><name>cat</name>"
        + part
        + "<bndbox><ymax>9</ymax><xmin>2</xmin><xmax>8</xmax><ymin>3</ymin></bndbox></object>"
    )
    add(tmp_path, "a", order, "<object><name>cat</name></object>")
    add(tmp_path, "b", thing("cat"))
    split(tmp_path, train="a", val="b")
    data = opened(tmp_path)
    assert data.classes == ["cat"] and data[0].boxes.tolist() == [[1, 2, 8, 9]]
    assert data.skipped == {"without a box": 1}


def test_what_is_known_of_an_object_is_an_attribute(tmp_path):
    add(
        tmp_path,
        "a",
        thing(inside="<difficult>1</difficult><pose>Left</pose>"),
        thing(inside="<difficult>0</difficult>"),
    )
    add(tmp_path, "b", thing())
    split(tmp_path, train="a", val="b")
    assert opened(tmp_path)[0].attributes == {"difficult": ["yes", "no"]}
    assert opened(tmp_path, "val")[0].attributes == {"difficult": [""]}


def test_years_lie_side_by_side(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        for name in ("1", "2"):
            add(tmp_path / "VOCdevkit" / year, name, thing(f"of {year}"))
        split(tmp_path / "VOCdevkit" / year, train=["1"], dog_train=["1 -1"], val=["2  1"])
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert train.file_names == [f"VOCdevkit/VOC20{year}/JPEGImages/1.jpg" for year in ("07", "12")]
    assert val.file_names == [f"VOCdevkit/VOC20{year}/JPEGImages/2.jpg" for year in ("07", "12")]
    assert train.classes == val.classes == ["of VOC2007", "of VOC2012"]


def test_files_beside_images_in_folders_of_splits_or_in_one(tmp_path):
    for folder, name in (("train", "a"), ("valid", "b")):
        add(tmp_path / "split", name, thing(), images=folder, xml=folder)
        add(tmp_path / "one", name, thing(), images=".", xml=".")
    train, val = opened(tmp_path / "split"), opened(tmp_path / "split", "val")
    assert (train.split, train.file_names, val.split, val.file_names) == (
        "train",
        ["train/a.jpg"],
        "valid",
        ["valid/b.jpg"],
    )
    names = [name for part in ("train", "val") for name in opened(tmp_path / "one", part).file_names]
    assert sorted(names) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_a_size_that_is_left_out_is_the_images(tmp_path, size):
    add(tmp_path, "a", thing(box=(50, 30, 70, 50)), size=size)
    add(tmp_path, "b", thing())
    split(tmp_path, train="a", val="b")
    assert opened(tmp_path)[0].boxes.tolist() == [[49, 29, 60, 40]]


def test_a_missing_image_is_one_line(tmp_path):
    add(tmp_path, "a", thing())
    add(tmp_path, "b", thing())
    split(tmp_path, train="a", val="b")
    (tmp_path / "JPEGImages/a.jpg").unlink()
    with pytest.raises(InputError, match=r"JPEGImages/a.jpg: no such image file \(1 of 1 are missing\)"):
        opened(tmp_path)
    assert opened(tmp_path, "val")[0].name == "JPEGImages/b.jpg"
    assert (
        Voc(DataConfig(name="voc", root=str(tmp_path)), "train", False).examine(0, False)[0].cure == "unpack it there"
    )


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        (lambda text: text[:-3], "is not valid XML"),
        (lambda text: text.replace("annotation", "notes"), "holds <notes>, not Pascal VOC's <annotation>"),
        (lambda text: text.replace("<name>dog</name>", ""), "object 0 (the first is 0) has no name"),
        (lambda text: text.replace("<xmin>1", "<xmin>one"), "object 0, xmin is 'one', not a number"),
        (lambda text: text.replace("<ymax>20</ymax>", ""), "object 0, ymax is None, not a number"),
        (lambda text: text.replace("<width>60", "<width>wide"), "size/width is 'wide', not a number"),
        (lambda text: text.replace("<width>60", "<width>nan"), "size/width is nan, not a number of pixels"),
        (lambda text: text.replace("<height>40", "<height>inf"), "size/height is inf, not a number of pixels"),
        (lambda text: text.replace("<height>40", "<height>1e30"), "size/height is 1e+30, not a number of pixels"),
    ],
)
def test_a_malformed_file_is_one_line(tmp_path, change, trouble):
    path = add(tmp_path, "a", thing())
    add(tmp_path, "b", thing())
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError) as caught:
        opened(tmp_path)
    assert caught.value.where == str(path) and trouble in caught.value.trouble and "\n" not in str(caught.value)


def test_folders_and_splits_that_are_not_there_are_one_line(tmp_path):
    for root, trouble in ((tmp_path / "gone", "no such folder"), (tmp_path, "holds no XML file")):
        with pytest.raises(InputError, match=trouble):
            opened(root)
    add(tmp_path, "a", thing())
    split(tmp_path, train=["a", "c"])
    with pytest.raises(InputError, match=r"train.txt: lists c, which has no annotations \(1 of 2"):
        opened(tmp_path)


def test_kept_annotations_follow_the_images(tmp_path, monkeypatch):
    """Which file is an image, and where the annotations give no size its size, is read of the images."""
    monkeypatch.setattr(cache, "LEAST", 0)
    for name in ("a", "b"):
        add(tmp_path, name, thing(box=(50, 30, 70, 50)), size="" if name == "a" else SIZE)
    split(tmp_path, train="a", val="b")
    assert opened(tmp_path)[0].boxes.tolist() == [[49, 29, 60, 40]]
    Image.new("RGB", (66, 44)).save(tmp_path / "JPEGImages/a.jpg")
    assert opened(tmp_path)[0].boxes.tolist() == [[49, 29, 66, 44]]
    (tmp_path / "JPEGImages/b.jpg").unlink()
    looked_at = Voc(DataConfig(name="voc", root=str(tmp_path)), "val", False)
    assert looked_at.missing == {"JPEGImages/b.jpg"} and len(list((tmp_path / ".irnet").iterdir())) == 1
    Image.new("RGB", (60, 40)).save(tmp_path / "JPEGImages/b.png")
    assert opened(tmp_path, "val").file_names == ["JPEGImages/b.png"]


def test_names_in_lists_may_hold_blanks(tmp_path):
    names = ["my dog", "my dog 2", "frame 1", "c"]
    for name in names:
        add(tmp_path, name, thing())
    split(tmp_path, train=["my dog", "frame 1"], val=["my dog 2", "c"], dog_train=["my dog  1", "frame 1 -1", "c 0"])
    assert opened(tmp_path).file_names == ["JPEGImages/frame 1.jpg", "JPEGImages/my dog.jpg"]
    assert opened(tmp_path, "val").file_names == ["JPEGImages/c.jpg", "JPEGImages/my dog 2.jpg"]
    assert opened(tmp_path, train_split="dog_train").file_names == [
        f"JPEGImages/{name}.jpg" for name in ("c", "frame 1", "my dog")
    ]


def test_images_without_a_usable_box_are_one_line(tmp_path):
    add(tmp_path, "a", "<object><name>cat</name></object>")
    add(tmp_path, "b", thing())
    split(tmp_path, train="a", val="b")
    with pytest.raises(InputError) as caught:
        opened(tmp_path)
    assert str(caught.value) == f"{tmp_path}: the training images have no usable region; annotate some of them"


def test_an_image_of_both_lists_is_warned_of(tmp_path, caplog):
    for name in "abc":
        add(tmp_path, name, thing())
    split(tmp_path, train="ab", val="bc", other="a")
    with caplog.at_level(logging.WARNING, logger="irnet"):
        opened(tmp_path, train_split="other")
        opened(tmp_path, train_split="other").examine(0, False)
        assert not caplog.records
        assert len(opened(tmp_path)) == len(opened(tmp_path, "val")) == 2
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"{tmp_path}: 1 of the 2 images to train on (train) is held out by val, too"]


def test_a_damaged_list_is_one_line(tmp_path):
    add(tmp_path, "a", thing())
    split(tmp_path, val="a")
    path = tmp_path / "ImageSets/Main/train.txt.gz"
    path.write_bytes(gzip.compress(b"a\n")[:10] + b"\xff" * 20)
    with pytest.raises(InputError, match=r"train.txt.gz: cannot be read \(Error -3 while decompressing") as caught:
        opened(tmp_path)
    assert caught.value.cure == "fetch it again"


def test_the_folder_of_annotations_itself_is_a_root(tmp_path):
    """Its images then lie outside it."""
    for name in "abcdefghij":
        add(tmp_path, name, thing())
    data = opened(tmp_path / "Annotations")
    assert "../JPEGImages/a.jpg" in {*data.file_names, *opened(tmp_path / "Annotations", "val").file_names}
    assert data[0].boxes.tolist() == [[0, 0, 10, 20]]
