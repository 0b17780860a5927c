"""Prediction on one image: what is printed and drawn, and every box that is refused."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from irnet.cli import main
from irnet.config import DataConfig
from irnet.data.images import read_image
from irnet.data.registry import open_dataset
from irnet.data.sample import Sample
from irnet.engine import checkpoint, predict
from irnet.engine.build import restore_model


@pytest.fixture(scope="module")
def image(scenes_root):
    return next(scenes_root.rglob("*val/000001.png"))


def arguments(image, boxes, run, *more) -> list[str]:
    return [str(word) for word in ("predict", image, "--boxes", boxes, "--checkpoint", run, *more)]


def test_predict_prints_a_line_per_box_and_draws(trained, image, tmp_path, capsys):
    (tmp_path / "boxes.txt").write_text("10 10 60 70  # a comment\n80,20,140,90\n0 0 160 160\n")
    output = tmp_path / "out/picture.png"
    assert main(arguments(image, tmp_path / "boxes.txt", trained, "--output", output)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:] == [str(output)]
    classes = checkpoint.find(trained).classes
    for index, line in enumerate(lines[:3], 1):
        number, name, score, trail = re.fullmatch(r"(\d+): (\w+) (\d\.\d\d)  \((.+)\)", line).groups()
        assert int(number) == index and name in classes and 1 / 19 - 0.01 < float(score) <= 1
        assert trail == "the same at every step" or re.match(r"conv: \w+ -> (local|global) 1: \w+", trail)
    with Image.open(output) as picture:
        assert picture.format == "PNG" and picture.width >= 900
        assert np.asarray(picture).std() > 5


def test_predict_by_default_writes_into_this_folder(trained, image, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boxes.json").write_text('[{"box": [1, 2, 30, 40], "name": "ignored"}]')
    assert main(arguments(image, "boxes.json", trained / "checkpoints" / checkpoint.BEST)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "000001.irnet.png"
    assert (tmp_path / "000001.irnet.png").exists()


@pytest.mark.parametrize("text", ["", "# nothing here\n", "[]"])
def test_predict_without_boxes(text, trained, image, tmp_path, capsys):
    (tmp_path / "none.txt").write_text(text)
    assert main(arguments(image, tmp_path / "none.txt", trained, "--output", tmp_path / "x.png")) == 0
    captured = capsys.readouterr()
    assert f"{tmp_path / 'none.txt'} holds no boxes: no regions to name" in captured.out
    assert (tmp_path / "x.png").exists() and "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("box", "trouble"),
    [
        ("10 10 10 50", "has no width or no height"),
        ("50 50 10 10", "has no width or no height"),
        ("-20 10 50 50", "has a negative coordinate"),
        ("10 10 500 50", "reaches outside the image"),
        ("300 300 400 400", "reaches outside the image"),
        ("nan 10 50 50", "is not finite"),
        ("10 10 inf 50", "is not finite"),
        ("10 10 50", "is not four numbers"),
        ("a b c d", "is not four numbers"),
    ],
)
def test_bad_boxes(box, trouble, trained, image, refused, tmp_path):
    path = tmp_path / "boxes.txt"
    path.write_text(f"1 2 30 40\n{box}\n")
    refused(arguments(image, path, trained, "--output", tmp_path / "x.png"), path, trouble)
    assert not (tmp_path / "x.png").exists()


def test_bad_files(trained, image, refused, refused_process, tmp_path):
    boxes, x = tmp_path / "boxes.txt", ["--output", tmp_path / "x.png"]
    boxes.write_text("1 2 30 40\n")
    refused(arguments(tmp_path / "no.png", boxes, trained, *x), tmp_path / "no.png", "no such image file")
    refused(arguments(boxes, boxes, trained, *x), boxes, "not a readable image")
    cut = tmp_path / "cut.png"
    cut.write_bytes(image.read_bytes()[:3000])
    refused_process(arguments(cut, boxes, trained, *x), cut, "not a readable image")
    refused(arguments(image, tmp_path / "no.txt", trained, *x), tmp_path / "no.txt", "No such file")
    refused(arguments(image, boxes, tmp_path, *x), tmp_path, "holds no checkpoint")
    refused(arguments(image, boxes, boxes, *x), boxes, "no checkpoint")
    refused(arguments(image, boxes, trained, "--output", boxes / "x.png"), boxes / "x.png", "cannot be written")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["boxes.txt", "cut.png"]


@pytest.fixture(scope="module")
def model(trained):
    saved = checkpoint.find(trained)
    return restore_model(saved.config.model, len(saved.classes), saved.model), saved


def test_explanation(model, image):
    model, saved = model
    sample = open_dataset(saved.config.data, "val")[0]
    assert torch.equal(sample.image, read_image(image))
    found = predict.explain(model, sample, saved.classes, DataConfig(short_side=0))
    regions = len(sample.labels)
    assert [str(key) for key in found.keys] == ["conv", "local 1", "global 1"] and found.scores.shape == (
        3,
        regions,
        19,
    )
    np.testing.assert_allclose(found.attention.sum(0), np.ones(regions), atol=1e-6)
    np.testing.assert_allclose(found.final.sum(1), np.ones(regions), atol=1e-6)
    assert found.stride == 16 and found.memory.shape == (1, 10, 10) and found.variant == "full"
    assert (found.image == sample.image.permute(1, 2, 0).numpy()).all() and (found.boxes == sample.boxes.numpy()).all()


def test_resized_image_keeps_its_boxes_and_scales_the_memory(model, image):
    model, saved = model
    picture = read_image(image)
    sample = Sample(picture, torch.tensor([[5.0, 6.0, 70.0, 80.0]]), torch.zeros(1, dtype=torch.int64), "x.png")
    found = predict.explain(model, sample, saved.classes, DataConfig(short_side=320, long_side=0))
    assert found.image.shape == (160, 160, 3) and found.boxes.tolist() == [[5, 6, 70, 80]]
    assert found.memory.shape == (1, 20, 20) and found.stride == 8


def test_names_with_folders_do_not_collide(model, scenes_root, tmp_path):
    model, saved = model
    root = tmp_path / "scenes"
    shutil.copytree(scenes_root, root)
    path = root / "annotations/instances_val.json"
    first = next(root.rglob("*val/000001.png"))
    (first.parent / "sub").mkdir()
    first.rename(first.parent / "sub/000002.png")
    path.write_text(path.read_text().replace("000001.png", "sub/000002.png"))
    config = saved.config.data
    config.root = str(root)
    predict.draw(tmp_path / "vis", model, open_dataset(config, "val"), config, 99)
    assert len(list((tmp_path / "vis").iterdir())) == 4


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd.png", "../../up.png", "a\\..\\b.jpg", "a:b\n\0c.png", "機" * 200 + ".png", ".png", "..", "con"],
)
def test_names_of_pictures_stay_in_their_folder_and_fit(name):
    found = predict.picture_name(3, name)
    assert found.startswith("000004_") and found.endswith(".png") and len(found.encode()) <= 120
    assert not set(found) & set("/\\:\n\0") and found != predict.picture_name(4, name)


def test_several_images_with_boxes_in_cocos_format(trained, scenes_root, tmp_path, capsys):
    images = sorted(scenes_root.rglob("*val/*.png"))[:2]
    table = json.loads((scenes_root / "annotations/instances_val.json").read_text())
    words = ["predict", *images, "--checkpoint", trained, "--output", tmp_path / "out", "--json"]
    boxes = scenes_root / "annotations/instances_val.json"
    assert main([str(word) for word in [*words, "--boxes", boxes]]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = {row["id"]: row["name"] for row in table["categories"]}
    for image, answer in zip(images, answers, strict=True):
        (number,) = [row["id"] for row in table["images"] if row["file_name"] == image.name]
        rows = [row for row in table["annotations"] if row["image_id"] == number]
        assert answer["image"] == str(image) and [Path(p).exists() for p in answer["pictures"]] == [True]
        assert [region["given"] for region in answer["regions"]] == [names[row["category_id"]] for row in rows]
        for region, row in zip(answer["regions"], rows, strict=True):
            x, y, width, height = row["bbox"]
            assert region["box"] == pytest.approx([x, y, x + width, y + height], abs=1e-3)
            assert region["class"] == region["top"][0]["class"] and region["score"] == region["top"][0]["score"]
            assert sum(step["attention"] for step in region["steps"].values()) == pytest.approx(1, abs=1e-4)
    detections = [{"image_id": i + 1, "category_id": 3, "bbox": [5, 6, 30, 20 + i], "score": 0.9} for i in (0, 0, 1)]
    (tmp_path / "results.json").write_text(json.dumps(detections))
    assert main([str(word) for word in [*words, "--boxes", tmp_path / "results.json"]]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [[region["box"] for region in answer["regions"]] for answer in answers] == [
        [[5, 6, 35, 26], [5, 6, 35, 26]],
        [[5, 6, 35, 27]],
    ]
    assert answers[0]["regions"][0]["given"] == "category 3"


def test_boxes_for_other_images_are_refused(trained, scenes_root, refused, tmp_path):
    images = sorted(scenes_root.rglob("*val/*.png"))[:2]
    (tmp_path / "boxes.txt").write_text("1 2 30 40")
    words = ["predict", *images, "--checkpoint", trained, "--boxes", tmp_path / "boxes.txt"]
    refused(words, "--boxes", "1 files are given for 2 images", "repeat --boxes")
    refused([*words, "--boxes", tmp_path / "boxes.txt", "--output", "x.png"], "x.png is one picture for 2 images")
    (tmp_path / "results.json").write_text('[{"image_id": 77, "category_id": 1, "bbox": [1, 2, 3, 4]}]')
    words = ["predict", *images, "--checkpoint", trained, "--boxes", tmp_path / "results.json"]
    refused(words, "results.json", "has no detection whose image_id is 000001")


def test_an_image_without_a_detection_does_not_end_the_others(trained, scenes_root, tmp_path, capsys):
    images = sorted(scenes_root.rglob("*val/*.png"))[:3]
    (tmp_path / "results.json").write_text('[{"image_id": 2, "category_id": 1, "bbox": [1, 2, 30, 40]}]')
    words = ["predict", *images, "--checkpoint", trained, "--boxes", tmp_path / "results.json", "--json"]
    assert main([str(word) for word in [*words, "--output", tmp_path / "out"]]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [[region["box"] for region in answer["regions"]] for answer in answers] == [[], [[1, 2, 31, 42]], []]


def test_names_that_the_user_gives_are_shown(trained, image, tmp_path, capsys):
    (tmp_path / "boxes.json").write_text(
        '[{"box": [1, 2, 30, 40], "name": "mug"}, {"box": [5, 6, 70, 80], "name": "x"}]'
    )
    pictures = []
    for names in ("mug", "jug"):
        text = (tmp_path / "boxes.json").read_text().replace("mug", names)
        (tmp_path / "boxes.json").write_text(text)
        output = tmp_path / f"{names}.png"
        assert main(arguments(image, tmp_path / "boxes.json", trained, "--output", output)) == 0
        assert f"; given as {names})" in capsys.readouterr().out.splitlines()[0]
        pictures.append(np.asarray(Image.open(output)))
    assert pictures[0].shape == pictures[1].shape and (pictures[0] != pictures[1]).any()


@pytest.mark.parametrize("name", ["x.jpg", "x.JPEG"])
def test_a_jpeg_is_one(name, trained, image, tmp_path):
    (tmp_path / "boxes.txt").write_text("1 2 30 40")
    assert main(arguments(image, tmp_path / "boxes.txt", trained, "--output", tmp_path / name)) == 0
    with Image.open(tmp_path / name) as picture:
        assert picture.format == "JPEG" and picture.width >= 900


def test_many_boxes_make_pages(trained, image, tmp_path, capsys):
    (tmp_path / "boxes.txt").write_text("1 2 30 40\n" * 205)
    assert main(arguments(image, tmp_path / "boxes.txt", trained, "--output", tmp_path / "x.png")) == 0
    pages = [tmp_path / name for name in ("x.png", "x.2.png", "x.3.png")]
    assert capsys.readouterr().out.splitlines()[-3:] == list(map(str, pages))
    heights = [Image.open(page).height for page in pages]
    assert heights[0] == heights[1] > heights[2] and max(heights) < 8000


def test_turned_photographs_say_in_which_pixels_boxes_are_read(trained, refused, tmp_path, caplog):
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("jpg", "png"):
        Image.new("RGB", (64, 48), (90, 20, 20)).save(tmp_path / f"photo.{suffix}", exif=exif)
        (tmp_path / "boxes.txt").write_text("5 5 30 60")  # fits the image as viewers show it
        words = arguments(tmp_path / f"photo.{suffix}", tmp_path / "boxes.txt", trained, "--output", tmp_path / "x.png")
        refused(words, "reaches outside the image", "64 x 48")
        assert "as stored, 64 x 48; its EXIF orientation is 6; data.orientation=turned reads" in caplog.text
        assert main([*words, "data.orientation=turned"]) == 0
        assert "as viewers turn it, 48 x 64" in caplog.text


@pytest.mark.parametrize("size", [(640, 480), (320.0, 320.0), (160, 161)])
def test_boxes_made_for_an_image_of_another_size_are_refused(size, trained, image, refused, tmp_path):
    table = {
        "images": [{"id": 1, "file_name": image.name, "width": size[0], "height": size[1]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 6, 30, 20]}],
        "categories": [{"id": 1, "name": "cup"}],
    }
    boxes, output = tmp_path / "boxes.json", tmp_path / "x.png"
    boxes.write_text(json.dumps(table))
    says = f"is 160 x 160, but boxes.json says {int(size[0])} x {int(size[1])}"
    refused(arguments(image, boxes, trained, "--output", output), image, says, "the boxes were made for")
    table["images"][0] |= {"width": 160.0, "height": 160}
    boxes.write_text(json.dumps(table))
    assert main(arguments(image, boxes, trained, "--output", output)) == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_name_ends_a_command(encoding, trained, image, tmp_path, monkeypatch):
    (tmp_path / "boxes.json").write_text(
        json.dumps([{"box": [1, 2, 30, 40], "name": "\u8336\u676f \ud83d\ude00 \udc80"}])
    )
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", out)
    assert main(arguments(image, tmp_path / "boxes.json", trained, "--output", tmp_path / "x.png")) == 0
    out.flush()
    text = out.buffer.getvalue().decode(encoding)
    assert ("\u8336" if encoding == "utf-8" else "\\u8336") in text and "\\udc80" in text
