"""The demonstration: one page from nothing, taken up where it stopped, and never mixed with other settings."""

import html
import json
import re
import shutil
import signal

import pytest

from irnet import config as settings
from irnet.config import VARIANTS
from irnet.engine import checkpoint
from irnet.engine.build import restore_model
from irnet.engine.run_folder import locked
from irnet.scenes.layout import THEMES
from irnet.scenes.rules import RULES

# Ten held-out scenes of seed 0 hold every kind of puzzle.
SMALL = ["--train-scenes", "8", "--val-scenes", "10", "-b", "4", "-j", "0", "train.log_every=1"]
MODEL = [
    "memory_channels=4",
    "memory_size=4",
    "graph_layers=1",
    "hidden=8",
    "graph_channels=4",
    "backbone_channels=4",
    "patch_size=2",
    "iterations=1",
]


def arguments(output, *more, steps: int = 2) -> list[str]:
    words = ["demo", "--output-dir", output, "--steps", steps, *SMALL, *(f"model.{word}" for word in MODEL), *more]
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def done(tmp_path_factory, irnet):
    """The folder of a finished demonstration, and what it printed."""
    output = tmp_path_factory.mktemp("demo") / "demo"
    return output, irnet.run(arguments(output))


def contents(folder) -> dict:
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "index.html"}


def weights(folder) -> dict:
    return {v: checkpoint.find(folder / v).model["classifier.weight"].tolist() for v in VARIANTS}


def test_demo_writes_a_page_and_prints_the_table(done):
    output, process = done
    page = (output / "index.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and page.rstrip().endswith("</html>")
    assert "http://" not in re.sub(r"http://www.w3.org/\S+", "", page) and "nan" not in page.split("</style>")[1][:4000]
    for variant in VARIANTS:
        assert re.search(rf"^{variant}\s+\d+\.\d", process.out, re.M), process.out
        assert variant in page
        assert settings.load(output / variant / "config.yaml").model.variant == variant
        assert checkpoint.find(output / variant).step == 2
    assert "full - conv" in process.out and "box-only bound" in process.out
    assert str(output / "index.html") in process.out.splitlines()[-1]
    assert "\r" not in process.err + process.out
    summary = json.loads((output / "full/summary.json").read_text())
    assert summary["results"] == json.loads((output / "full/results.json").read_text())
    assert summary["seconds"] > 0
    saved = checkpoint.find(output / "full")
    model = restore_model(saved.config.model, len(saved.classes), saved.model)
    assert summary["parameters"] == sum(p.numel() for p in model.parameters())


def test_page_begins_with_a_card_for_every_kind_of_puzzle_in_the_scenes(done):
    output, _ = done
    rows = json.loads((output / "scenes/annotations/instances_val.json").read_text())["annotations"]
    kinds = [kind for kind in ("near", "far", "presence") if any(row["kind"] == kind for row in rows)]
    text = (output / "index.html").read_text()
    before, _, _ = text.partition("<table")
    assert re.findall("<span class=kind>(.*?)</span>", before) == kinds == list(RULES)
    assert all(rule in html.unescape(before) for rule in RULES.values())
    told = re.findall(r'alt="[^"]*truly holds a (.*?)\. Framed in dashes, its clue: (.*?)\."', before)
    sorts = {"egg": {"hen", "turtle"}, "flower": {"sun"}, "ball": {name for theme in THEMES for name in theme}}
    assert all(clue in sorts[truth.split()[1]] for truth, clues in told for clue in clues.split(" and "))


def test_second_call_trains_nothing_and_makes_the_page_again(done, irnet, tmp_path):
    output = shutil.copytree(done[0], tmp_path / "demo")
    (output / "index.html").unlink()
    before = contents(output)
    process = irnet.run(arguments(output))
    assert contents(output) == before and (output / "index.html").exists()
    assert "loss" not in process.err
    table = lambda text: [line for line in text.splitlines() if line.startswith(VARIANTS)]  # noqa: E731
    assert [line for line in table(process.out) if "training for" not in line] == [
        line for line in table(done[1].out) if "training for" not in line
    ]


def test_interrupted_demo_goes_on(done, irnet, tmp_path):
    output = tmp_path / "demo"
    every = ["train.checkpoint_every=1"]  # without effect on what comes out
    logged = output / "local/metrics.jsonl"
    irnet.start(arguments(output, *every)).kill_when(logged.exists)
    conv = (output / "conv/checkpoints/last.safetensors").stat().st_mtime_ns
    summary = output / "full/summary.json"
    die = (
        "import os, signal\nreal = os.replace\n"
        f"os.replace = lambda a, b: os.kill(os.getpid(), 9) if str(b) == {str(summary)!r} else real(a, b)"
    )
    irnet.run(arguments(output, *every), die, code=-signal.SIGKILL)  # trained, but not yet said so
    assert not summary.exists() and not (output / "index.html").exists()
    irnet.run(arguments(output))
    assert (output / "conv/checkpoints/last.safetensors").stat().st_mtime_ns == conv
    assert weights(output) == weights(done[0])
    lines = map(json.loads, logged.read_text().splitlines())
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert (output / "full/results.json").read_text() == (done[0] / "full/results.json").read_text()


@pytest.mark.parametrize(
    ("more", "steps", "words"),
    [
        (["--seed", "1"], 2, "holds scenes made with other parameters"),
        ([], 3, "train.steps = 2, not 3"),
        (["model.hidden=16"], 2, "model.hidden = 8, not 16"),
        (["train.lr=0.1"], 2, "train.lr = 0.004, not 0.1"),
        (["--train-scenes", "10"], 2, "holds scenes made with other parameters"),
    ],
)
def test_other_settings_in_the_same_folder(more, steps, words, done, refused):
    before = contents(done[0])
    refused(arguments(done[0], *more, steps=steps), done[0], words, "name another")
    assert contents(done[0]) == before


def test_folder_that_is_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("precious")
    refused(arguments(tmp_path / "file"), tmp_path / "file", "cannot be written")
    refused(arguments(tmp_path / "demo", "--train-scenes", "7"), "scenes come in pairs")
    assert (tmp_path / "file").read_text() == "precious"


def test_disk_full_while_scenes_are_made(refused_process, tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))"
    refused_process(arguments(tmp_path / "demo"), "scenes", "cannot be written (File too large)", first=limit)
    assert [path.name for path in (tmp_path / "demo").iterdir()] == [".lock"]


def test_second_demonstration_in_a_folder_is_refused(tmp_path, refused):
    with locked(tmp_path / "demo"):
        refused(["demo", "--output-dir", tmp_path / "demo", *SMALL], tmp_path / "demo", "another run is writing there")
    assert [path.name for path in (tmp_path / "demo").iterdir()] == [".lock"]
