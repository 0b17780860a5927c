"""The folder of a run: what it holds and says, and a disk that is full while lines are written to it."""

import json
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from irnet import config as settings
from irnet.cli import main
from irnet.engine import checkpoint
from irnet.engine.run_folder import Meter, Record
from irnet.progress import Progress
from tests.engine.tools import LIMIT, lines, logged


def test_run_folder(trained, scenes_root):
    assert sorted(str(p.relative_to(trained)) for p in trained.rglob("*") if p.is_file()) == sorted(
        [
            "config.yaml",
            "env.txt",
            "log.txt",
            ".lock",
            "metrics.jsonl",
            "results.json",
            "per_class.csv",
            "confusion.csv",
            *(f"checkpoints/{name}.safetensors" for name in ("last", "best", "previous")),
        ]
    )
    config = settings.load(trained / "config.yaml")
    assert config == checkpoint.find(trained).config
    assert (config.model.hidden, config.train.steps, config.data.root) == (8, 4, str(scenes_root))
    assert yaml.safe_load(settings.dump(config)) == yaml.safe_load((trained / "config.yaml").read_text())
    env = (trained / "env.txt").read_text()
    assert f"torch: {torch.__version__}" in env and "crop_resize" in env
    log = (trained / "log.txt").read_text()
    assert "8 training images, 19 classes" in log and "skipped: none" in log and "held-out images" in log
    assert [line["step"] for line in lines(trained)] == [1, 2, 3, 4]
    assert {"lr", "loss", "loss_conv", "loss_local", "loss_global", "loss_final", "images_per_s"} <= set(
        lines(trained)[0]
    )
    results = json.loads((trained / "results.json").read_text())
    assert (results["step"], results["split"], results["images"]) == (4, "val", 4)
    assert list(results["metrics"]) == ["final", "conv", "local 1", "global 1"]
    assert results["metrics"]["final"]["class_ap"] == checkpoint.find(trained).extra["best"]


def test_a_run_says_where_its_results_lie_and_how_long_it_takes(train_arguments, irnet, tmp_path):
    process = irnet.run(train_arguments(tmp_path / "run", steps=2))
    begin, end = f"results go to {tmp_path / 'run'}: log.txt", tmp_path / "run/checkpoints" / checkpoint.LAST
    assert f"\n{begin}" in process.err and process.out.splitlines()[-1] == str(end) and end.exists()
    for text in (process.err, (tmp_path / "run/log.txt").read_text()):
        lines = [line for line in text.splitlines() if "step 1 of 2: " in line]
        assert len(lines) == 1 and re.search(r"loss \d.*img/s .*, [\d.e-]+ s a step, \d+ s left$", lines[0]), text
    for name in process.out.splitlines()[-2].partition(": ")[2].replace(" vis/", "").strip(", ").split(", "):
        assert (tmp_path / "run" / name).exists()


def test_half_written_line_of_metrics_is_dropped(trained, train_arguments, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    with open(output / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "los')
    assert main(train_arguments(output, "--resume", steps=6)) == 0
    assert [line["step"] for line in lines(output)] == [1, 2, 3, 4, 5, 6]


def test_metrics_of_every_evaluation(train_arguments, tmp_path):
    """Also where the run is done again, or goes on."""
    output = tmp_path / "run"

    def evaluations(*more, steps):
        assert main(train_arguments(output, "train.eval_every=2", *more, steps=steps)) == 0
        return [line for line in logged(output) if "metrics" in line]

    found = evaluations(steps=3)
    assert [line["step"] for line in found] == [2, 3] and len(logged(output)) == 5
    results = json.loads((output / "results.json").read_text())
    assert found[-1] == {key: results[key] for key in ("step", "split", "images", "regions", "metrics", "attention")}
    assert found[0].keys() == found[1].keys() and found[0]["metrics"] != found[1]["metrics"]
    assert evaluations("--resume", steps=3) == found
    more = evaluations("--resume", steps=5)
    assert [line["step"] for line in more] == [2, 3, 4, 5] and more[:2] == found


def test_the_evaluation_of_a_finished_run_stays_until_it_is_replaced(trained, train_arguments, irnet, tmp_path):
    """Ended while it is evaluated again, it goes on with more steps, and the evaluation between them is there."""
    output, before = shutil.copytree(trained, tmp_path / "run"), logged(trained)
    die = "import os, signal; from irnet.engine import evaluate\n"
    die += "evaluate.held_out = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    irnet.run(train_arguments(output, "--resume"), die, code=-signal.SIGKILL)
    assert logged(output) == before and "metrics" in before[-1]
    irnet.run(train_arguments(output, "--resume", "train.limit_batches=1", batch=2))
    assert logged(output)[:-1] == before[:-1]
    assert (logged(output)[-1]["step"], logged(output)[-1]["images"], before[-1]["images"]) == (4, 2, 4)
    irnet.run(train_arguments(output, "--resume", steps=5))
    assert [line["step"] for line in logged(output) if "metrics" in line] == [4, 5]


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
def test_disk_full_while_logging(name, trained, train_arguments, refused_process, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    (output / name).write_bytes(
        b"\n" * 200_000 if name == "log.txt" else 2 * (output / name).read_bytes()
    )  # so much goes to standard error, too
    limit = 200_000 if name == "log.txt" else (output / name).stat().st_size
    if name == "metrics.jsonl":
        (output / "log.txt").unlink()
    arguments = train_arguments(output, "--resume", steps=6)
    refused_process(arguments, output / name, "cannot be written (File too large)", first=LIMIT.format(limit))
    assert checkpoint.find(output).step == 4


def test_meter_averages_the_steps_since_its_last_line(tmp_path):
    batch = SimpleNamespace(names=["a", "b"], boxes=[0, 1, 2])
    meter = Meter(Record(tmp_path / "metrics.jsonl"), 2, torch.device("cpu"))
    progress = Progress("training", 5, "step", hidden=True)
    for step in range(1, 6):
        with meter.paused():
            pass
        meter.add(step, step / 10, {"loss": float(step), "loss_conv": 1.0}, batch, progress)
    assert [(line["step"], line["lr"], line["loss"]) for line in lines(tmp_path)] == [
        (2, 0.2, 1.5),
        (4, 0.4, 3.5),
        (5, 0.5, 5),
    ]
    resident = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    assert all(0 < line["peak_memory"] <= resident for line in lines(tmp_path))
    assert lines(tmp_path)[-1]["peak_memory"] > 0.5 * resident
    assert all(line["regions_per_s"] == pytest.approx(1.5 * line["images_per_s"]) for line in lines(tmp_path))
