"""Real photographs: the small model learns a handful of COCO images by heart, then evaluates and predicts on others."""

import json
from pathlib import Path

import pytest

from irnet.cli import main

COCO = Path(__file__).parents[2] / "shared" / "data" / "coco_tiny"
OPTIONS = ["--data", "coco", "--data-root", str(COCO), "-j", "0"]


@pytest.mark.skipif(not COCO.is_dir(), reason=f"{COCO} is not here")
def test_training_loss_falls_to_a_tenth(tmp_path, capsys):
    run = tmp_path / "run"
    sizes = ["data.short_side=96", "data.long_side=160", "model.iterations=1", "train.lr=3e-3"]
    assert main(["train", "--small", *OPTIONS, "--output-dir", str(run), "-b", "8", "--steps", "200", *sizes]) == 0
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] <= losses[0] / 10, losses
    assert len(list((run / "vis").glob("*.png"))) == 4

    assert main(["eval", *OPTIONS, "--checkpoint", str(run)]) == 0
    results = json.loads((run / "results.json").read_text())
    assert results["images"] == 6 and results["regions"] == 135

    annotations = json.loads((COCO / "annotations" / "instances_val2017.json").read_text())
    image = annotations["images"][0]
    boxes = [a["bbox"] for a in annotations["annotations"] if a["image_id"] == image["id"]]
    (tmp_path / "boxes.json").write_text(json.dumps([[x, y, x + w, y + h] for x, y, w, h in boxes]))
    picture = tmp_path / "out.png"
    photograph = str(COCO / "images" / "val2017" / image["file_name"])
    capsys.readouterr()
    arguments = ["--boxes", str(tmp_path / "boxes.json"), "--checkpoint", str(run), "--output", str(picture)]
    assert main(["predict", photograph, *arguments]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(boxes) + 1  # a line per box, and the picture's name
    assert picture.read_bytes().startswith(b"\x89PNG")
