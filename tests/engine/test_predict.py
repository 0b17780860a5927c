"""Prediction on one image: what is printed and drawn, and every box that is refused."""

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from irnet.cli import main
from irnet.data.images import read_image
from irnet.data.sample import Sample
from irnet.engine import checkpoint, predict
from irnet.engine.setup import open_dataset, restore_model

pytestmark = pytest.mark.usefixtures("one_thread")


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
    found = predict.explain(model, sample, saved.classes, None, None)
    regions = len(sample.labels)
    assert found.steps == ["conv", "local 1", "global 1"] and found.scores.shape == (3, regions, 19)
    np.testing.assert_allclose(found.attention.sum(0), np.ones(regions), atol=1e-6)
    np.testing.assert_allclose(found.final.sum(1), np.ones(regions), atol=1e-6)
    assert found.stride == 16 and found.memory.shape == (1, 10, 10) and found.variant == "full"
    assert (found.image == sample.image.permute(1, 2, 0).numpy()).all() and (found.boxes == sample.boxes.numpy()).all()


def test_resized_image_keeps_its_boxes_and_scales_the_memory(model, image):
    model, saved = model
    picture = read_image(image)
    sample = Sample(picture, torch.tensor([[5.0, 6.0, 70.0, 80.0]]), torch.zeros(1, dtype=torch.int64), "x.png")
    found = predict.explain(model, sample, saved.classes, 320, None)
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
