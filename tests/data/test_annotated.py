"""Annotated images, read by way of COCO: what is skipped and counted, photographs that viewers turn, refused files."""

import logging
import math

import numpy as np
import pytest
from PIL import Image

from irnet.config import DataConfig
from irnet.data.coco import CocoDataset
from irnet.data.registry import open_dataset
from irnet.errors import InputError
from tests.data.tools import box_row, image_row, make, refused, tables


def test_skips_and_clips_are_counted_and_logged_once(tmp_path, caplog, capsys):
    boxes = [
        [10, 10, 20, 20],
        [-5, -5, 20, 20],  # clipped
        [50, 30, 20, 20],  # clipped
        [0, 0, 60.0005, 40],  # rounding, neither clipped nor outside
        [10, 10, 0, 5],
        [10, 10, 5, -3],
        [10, 10, 5, 0.0005],
        [59.9999, 10, 5, 5],  # next to nothing of it is left inside
        [math.nan, 10, 5, 5],
        [10, 10, math.inf, 5],
        [None, 10, 5, 5],
        [60, 10, 5, 5],
        [10, -8, 5, 8],
        [10, 99, 5, 8],
    ]
    annotations = [box_row(i, 1, box) for i, box in enumerate(boxes)]
    annotations.append(box_row(50, 1, [math.nan, 0, 1, 1], iscrowd=1))  # a crowd first of all
    make(tmp_path, tables(annotations))
    with caplog.at_level(logging.INFO, logger="irnet"):
        dataset = CocoDataset(tmp_path, "train")
    assert dataset.skipped == {"iscrowd": 1, "not finite": 3, "zero area": 4, "outside the image": 3}
    assert dataset.clipped == 2
    assert dataset[0].boxes.tolist() == [[10, 10, 30, 30], [0, 0, 15, 15], [50, 30, 60, 40], [0, 0, 60, 40]]
    assert len(caplog.records) == 1
    line = caplog.records[0].getMessage()
    assert "1 images (0 without boxes), 4 boxes in 2 classes; 2 clipped to the image; skipped: 1 iscrowd, 3 not" in line
    assert "\n" not in line
    assert capsys.readouterr() == ("", "")


def test_max_regions_keeps_the_first_usable_ones_of_each_image(tmp_path):
    crowd = box_row(1, 1, [0, 0, 9, 9], iscrowd=1)
    rows = [
        crowd,
        crowd | {"id": 99},
        *(box_row(n, 1, [n, 0, 5, 5]) for n in (4, 3, 2, 5)),
        box_row(9, 3, [9, 0, 5, 5]),
    ]
    make(tmp_path, tables(rows, [image_row(1), image_row(2), image_row(3)]))
    dataset = CocoDataset(tmp_path, "train", max_regions=2)
    assert [dataset[i].boxes[:, 0].tolist() for i in range(3)] == [[2, 3], [], [9]]
    assert dataset.skipped == {"iscrowd": 2, "over max_regions": 2}
    with pytest.raises(InputError, match="--max-regions: 0 is not a number of regions; give 1 or more"):
        CocoDataset(tmp_path, "train", max_regions=0)


def test_refuses_unreadable_images(tmp_path):
    make(tmp_path, tables())
    path = tmp_path / "images/train/000001.png"
    path.write_bytes(b"no image")
    error = refused(tmp_path)
    assert (error.where, error.cure) == (str(path), "fetch the file again or leave it out")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    assert "not a readable image" in refused(tmp_path).trouble


def test_a_missing_image_can_wait_until_it_is_examined(tmp_path):
    make(tmp_path, tables(images=[image_row(1), image_row(2)]))
    (path := tmp_path / "images/train/000002.png").unlink()
    dataset = CocoDataset(tmp_path, "train", require_images=False)
    assert dataset.missing == {"000002.png"} and dataset.examine(0, True) == (None, False)
    error, _ = dataset.examine(1, False)
    assert str(error) == f"{path}: no such image file; unpack it there"


def test_refuses_an_image_of_another_size(tmp_path):
    make(tmp_path, tables())
    path = tmp_path / "images/train/000001.png"
    Image.new("RGB", (40, 60)).save(path)
    error = refused(tmp_path)
    assert error.where == str(path)
    assert error.trouble == "is 40 x 60, but instances_train.json says 60 x 40"
    assert "neither resized nor turned" in error.cure


# ------------------------------------------------------------------------------- photographs with an EXIF orientation


def photo(path, orientation):
    """Stored lying, 60 x 40, the left half white."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, quality=95)


def photos(root, orientation, width, height, suffix="jpg"):
    """Two such photographs annotated as `width` x `height`; the box covers the white half as stored."""
    rows = [image_row(i, width, height, f"{i}.{suffix}") for i in (1, 2)]
    path = make(root, tables([box_row(i, i, [0, 0, 30, 40]) for i in (1, 2)], rows))
    for i in (1, 2):
        photo(root / f"images/train/{i}.{suffix}", orientation)
    return path


def open_train(root, **more):
    return open_dataset(DataConfig(root=str(root), train_split="train", val_split="train", **more), "train")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", [2, 3, 4, 6, 8])
def test_photographs_annotated_as_stored_are_read_as_stored(tmp_path, orientation, suffix, caplog):
    photos(tmp_path, orientation, 60, 40, suffix)
    image = open_train(tmp_path)[0].image
    assert image.shape == (3, 40, 60) and image[:, :, :29].float().mean() > 254
    settled = orientation in (6, 8)  # the turned image would have another size
    assert ("2 of 2 images looked at carry an EXIF orientation" in caplog.text) == (not settled)
    assert "data.orientation=turned" in caplog.text or settled


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_photographs_annotated_as_viewers_show_them_are_turned(tmp_path, orientation, suffix, caplog):
    path = photos(tmp_path, orientation, 40, 60, suffix)
    image = open_train(tmp_path)[0].image
    assert image.shape == (3, 60, 40)
    assert (image[:, :29] if orientation in (5, 6) else image[:, 31:]).float().mean() > 254
    assert "EXIF" not in caplog.text
    with pytest.raises(InputError) as caught:
        open_train(tmp_path, orientation="stored")[0]
    assert f"is 60 x 40, but {path.name} says 40 x 60, and it carries the EXIF orientation" in caught.value.trouble
    assert "choose data.orientation, which is stored" in caught.value.cure


def test_upside_down_photographs_can_be_turned_on_purpose(tmp_path, caplog):
    photos(tmp_path, 3, 60, 40)
    data = open_train(tmp_path, orientation="turned")
    assert data[0].image[:, :, 31:].float().mean() > 254 and "EXIF" not in caplog.text
    assert [data.examine(i, True) for i in (0, 1)] == [(None, False)] * 2
