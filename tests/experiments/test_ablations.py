"""Ablations: what each row changes, runs that are taken up and never repeated, the table, and missing boxes."""

import dataclasses
import itertools
import json
import shlex
import shutil
import statistics
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from PIL import Image

from irnet import config as settings
from irnet.cli import parser_of
from irnet.config import VARIANTS, small
from irnet.data.registry import open_dataset
from irnet.data.sample import Batch
from irnet.data.transforms import prepare
from irnet.engine import checkpoint
from irnet.engine.build import restore_model
from irnet.engine.evaluate import Scores
from irnet.engine.fit import made_up_edges
from irnet.engine.memory import Scene
from irnet.experiments.ablations import ablations, accuracies, missing, parameters, table_text
from irnet.models.predictions import FINAL
from irnet.options import read_settings
from irnet.report.table import WIDTH
from tests.conftest import TINY

SCENE = Scene(64, 64, (4,), 20, made_up_edges(20))
ROWS = "base,no-spatial,iterations-1,conv"


# --------------------------------------------------------------------------------------------------------- questions


def base_of(variant: str) -> settings.Config:
    config = small()
    config.model.variant = variant
    return config


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_row_is_a_run_of_its_own(variant):
    base = base_of(variant)
    found = ablations(base, SCENE)
    names = [ablation.name for ablation in found]
    assert names[0] == "base" and len(set(names)) == len(names)
    runs: dict[str, list[str]] = {}
    for ablation in found:
        runs.setdefault(settings.dump(ablation.settings(base, 7)), []).append(ablation.name)
    # The run as it is answers some questions, and of the global module alone no path and the other's alone are one.
    assert [names for names in runs.values() if len(names) > 1] == {
        "conv": [["base", "conv"]],
        "local": [["base", "iterations-2", "local"]],
        "global": [["base", "iterations-2", "global"], ["no-spatial", "class-path"], ["no-class-path", "region-edges"]],
        "full": [["base", "iterations-2"]],
    }[variant]
    for ablation in found:
        config = ablation.settings(base, 7)
        assert config.train.seed == 7 and parameters(config.model, SCENE) > 0
        again = settings.small()
        again.model.variant = variant
        for word in ablation.words():
            settings.override(again, *word.split("=", 1))
        assert (again.model, again.loss) == (config.model, config.loss)
    assert base == base_of(variant)


def test_rows_are_those_that_the_run_can_be_asked():
    names = {v: {a.name for a in ablations(base_of(v), SCENE)} for v in VARIANTS}
    of_both = {"no-cross-feed"}
    of_global = {"no-spatial", "no-class-edges", "no-class-path"}
    iterations = {f"iterations-{i}" for i in range(1, 6)}
    assert names["full"] - names["global"] == of_both
    assert names["global"] - names["local"] == of_global
    assert names["local"] - names["conv"] == {"mean", "last", "no-weights", *iterations}
    assert names["conv"] >= {"base", "local", "global", "region-edges", "class-path", "no-exchange", "conv"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_larger_convnets_have_as_many_weights_as_the_whole(variant):
    base = base_of(variant)
    whole = parameters(base_of("full" if variant == "conv" else variant).model, SCENE)
    found = {a.name: a.settings(base, 0).model for a in ablations(base, SCENE)}
    assert parameters(found["conv"], SCENE) < 0.5 * whole
    for name, layers in ("conv-wide", 1), ("conv-deep", 3):
        assert len(found[name].conv_head) == layers
        errors = []
        for more in (0, -1, 1):  # no other width is nearer
            model = dataclasses.replace(found[name], conv_head=[width + more for width in found[name].conv_head])
            errors.append(abs(parameters(model, SCENE) - whole))
        assert min(errors) == errors[0] < 0.01 * whole


# --------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def arguments(scenes_root):
    def arguments(output: Path, *more: str, rows: str = ROWS) -> list[str]:
        words = ["ablate", "--small", "--data-root", scenes_root, "--output-dir", output, "--steps", 2, "-b", 3]
        words += ["--variants", rows, "--missing-steps", 4, *TINY, "train.log_every=1", "train.checkpoint_every=1"]
        return [str(word) for word in [*words, *more]]

    return arguments


@pytest.fixture(scope="module")
def done(tmp_path_factory, irnet, arguments):
    """The folder of finished ablations with two seeds, what was printed, and ablations.json."""
    output = tmp_path_factory.mktemp("ablations") / "run s"
    process = irnet.run(arguments(output, "--seeds", "2", "--seed", "5"))
    return output, process.out, json.loads((output / "ablations.json").read_text())


def test_one_folder_for_each_row_and_seed_and_none_twice(done):
    output, _, record = done
    folders = {path.name for path in output.iterdir() if path.is_dir()}
    assert folders == {f"{name}-{seed}" for name in ("base", "no-spatial", "conv") for seed in (5, 6)}
    assert [row["name"] for row in record["rows"]] == ROWS.split(",") and record["seeds"] == [5, 6]
    for row in record["rows"]:
        assert [run["seed"] for run in row["runs"]] == [5, 6]
        final = [json.loads((Path(run["folder"]) / "results.json").read_text()) for run in row["runs"]]
        assert [run["results"] for run in row["runs"]] == final
        values = [results["metrics"]["final"]["class_ap"] for results in final]
        assert row["mean"]["class_ap"] == pytest.approx(statistics.fmean(values))
        assert row["spread"]["class_ap"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    shared = [
        [run["folder"] for run in row["runs"]] for row in record["rows"] if row["name"] in ("base", "iterations-1")
    ]
    assert shared[0] == shared[1]


def test_the_table_fits_a_terminal_and_every_row_names_a_command_that_gives_it(done):
    output, text, record = done
    table, _, commands = text.partition("Each row's command:\n")
    assert all(len(line) <= WIDTH for line in table.splitlines() if not line.startswith(tuple("123456789")))
    assert table_text(record) in text and "±" in table
    lines = [line for line in commands.splitlines() if line.startswith("irnet train")]
    assert lines == [row["command"] for row in record["rows"]]
    assert all(line in (output / "ablations.md").read_text() for line in lines)
    for line, row in zip(lines, record["rows"], strict=True):
        words = shlex.split(line)[1:]
        options = parser_of(words).parse_args(words)
        assert read_settings(options) == settings.load(Path(row["runs"][0]["folder"]) / "config.yaml")
        assert (options.output_dir, options.resume) == (row["runs"][0]["folder"], "auto")


def test_a_table_with_many_kinds_still_fits(done):
    record = json.loads(json.dumps(done[2]))
    for row in record["rows"]:
        for part in ("mean", "spread"):
            row[part] |= {f"kind:a kind of region {i}": 0.5 for i in range(9)}
    table, _, _ = table_text(record).partition("Each row's command:\n")
    assert max(map(len, table.splitlines())) <= WIDTH and "a kind of region" not in table


def test_a_second_call_trains_nothing(done, irnet, arguments, tmp_path):
    output = done[0]
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*/*") if path.is_file()}
    process = irnet.run(arguments(output, "--seeds", "2", "--seed", "5"))
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*/*") if path.is_file()} == before
    assert process.out == done[1] and "loss" not in process.err


def test_interrupted_runs_go_on_to_the_same_end(done, irnet, arguments, tmp_path):
    output = tmp_path / "again"
    logged = output / "no-spatial-5/metrics.jsonl"
    words = arguments(output, "--seed", "5", "--missing-steps", "0", rows="base,no-spatial")
    irnet.start(words).kill_when(lambda: logged.exists() and logged.read_text().count("\n") == 1)
    kept = (output / "base-5/summary.json").stat().st_mtime_ns
    assert not (output / "ablations.json").exists()
    irnet.run(words)
    assert (output / "base-5/summary.json").stat().st_mtime_ns == kept
    found = json.loads((output / "ablations.json").read_text())
    results = [row["runs"][0]["results"] for row in found["rows"]]
    assert results == [row["runs"][0]["results"] for row in done[2]["rows"][:2]] and "missing" not in found
    assert found["rows"][0]["spread"]["class_ap"] is None and "±" not in (output / "ablations.md").read_text()


def test_what_is_refused(done, refused, arguments, tmp_path):
    output = done[0]
    config = (output / "config.yaml").read_text()
    refused(arguments(output, "--seed", "5", "train.lr=0.5"), "holds a run with train.lr = 0.004, not 0.5")
    copied = shutil.copytree(settings.load(output / "config.yaml").data.root, tmp_path / "other")
    refused(arguments(output, "--seed", "5", "--data-root", copied), "holds a run with data.root")
    refused(arguments(output, rows="base,spatial"), "there is no 'spatial' of this run; choose among base, no-spatial")
    refused(arguments(output, "--seeds", "0"), "--seeds", "give 1 to 1000")
    refused(arguments(output, "--missing-steps", "-1"), "--missing-steps", "give 0 to 1000")
    assert (output / "config.yaml").read_text() == config


# ------------------------------------------------------------------------------------------------------ missing boxes


def test_with_no_box_missing_the_curve_is_the_plain_evaluation_and_with_all_each_box_is_alone(done):
    output, text, record = done
    accuracies = []
    for seed in (5, 6):
        found = json.loads((output / f"base-{seed}/missing.json").read_text())
        plain = json.loads((output / f"base-{seed}/results.json").read_text())
        assert found["accuracy"][0] == plain["metrics"]["final"]["instance_accuracy"]
        assert found["conv"] == plain["metrics"]["conv"]["instance_accuracy"]
        assert {k: v[0] for k, v in found["by_kind"].items()} == pytest.approx(plain["accuracy_by_kind"])
        saved = checkpoint.find(output / f"base-{seed}")
        data = open_dataset(saved.config.data, "val")
        model = restore_model(saved.config.model, len(saved.classes), saved.model).eval()
        hits = []
        for i in range(len(data)):
            sample = prepare(data[i], 0, 0)
            for box, label in zip(sample.boxes, sample.labels, strict=True):
                with torch.no_grad():
                    batch = Batch([sample.image], box[None], torch.tensor([0, 1]), label[None], ["x"])
                    hits.append(int(model(batch).final.argmax()) == int(label))
        assert found["accuracy"][-1] == pytest.approx(sum(hits) / len(hits))
        accuracies.append(found["accuracy"])
    curve = record["missing"]
    assert curve["shares"] == [0, 0.25, 0.5, 0.75, 1]
    assert curve["mean"] == pytest.approx([statistics.fmean(pair) for pair in zip(*accuracies, strict=True)])
    conv = next(row for row in record["rows"] if row["name"] == "conv")
    assert curve["conv"] == conv["mean"]["instance_accuracy"] and curve["conv_is"] == "the ConvNet alone"
    assert f"50.0% missing  {100 * curve['mean'][2]:5.1f}" in text


def test_the_curve_as_pictures(done):
    with Image.open(done[0] / "missing.png") as picture:
        assert picture.width > 600 and picture.getpixel((0, 0))[:3] == (255, 255, 255)
    root = ET.parse(done[0] / "missing.svg").getroot()
    text = " ".join("".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text"))
    assert "other boxes missing, %" in text and "the ConvNet alone" in text


def made_up_batch(counts: list[int]) -> Batch:
    """Images whose regions are known by their labels."""
    regions = sum(counts)
    images = [torch.full((3, 2, 2), float(i)) for i in range(len(counts))]
    ptr = torch.tensor([0, *itertools.accumulate(counts)])
    boxes, labels = torch.arange(4.0 * regions).view(-1, 4), torch.arange(regions)
    attributes = {"kind": [f"kind {r}" for r in range(regions)]}
    return Batch(images, boxes, ptr, labels, [str(i) for i in range(len(counts))], attributes)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_every_region_is_asked_once_with_as_many_others_as_are_left(share):
    counts = [5, 0, 1, 8, 2]
    batch = made_up_batch(counts)
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    asked = []
    for part in missing([batch], share, seed=3):
        assert 1 <= len(part.images) <= len(counts)
        assert torch.equal(part.boxes, batch.boxes[part.labels])
        assert part.attributes["kind"] == [f"kind {label}" for label in part.labels]
        asked += [int(r) for r, word in zip(part.labels, part.attributes["asked"], strict=True) if word == "yes"]
        for b, (image, name) in enumerate(zip(part.images, part.names, strict=True)):
            shown = part.labels[part.ptr[b] : part.ptr[b + 1]]
            assert (owner[shown] == int(name)).all() and image is batch.images[int(name)]
            others = max(counts[int(name)] - 1, 0)
            assert len(shown) == min(counts[int(name)], 1) + others - round(share * others)
            assert (shown.diff() > 0).all()
    assert sorted(asked) == list(range(sum(counts)))


def test_which_boxes_are_missing_follows_from_the_seed_whatever_the_batches():
    def shown(sizes: list[list[int]], seed: int) -> list[list[int]]:
        batches = map(made_up_batch, sizes)
        return [
            part.boxes[part.ptr[b] : part.ptr[b + 1], 0].tolist()
            for part in missing(batches, 0.5, seed)
            for b in range(len(part.images))
        ]

    relative = lambda found: [[x - boxes[0] for x in boxes] for boxes in found]  # noqa: E731
    assert shown([[6, 7]], 1) == shown([[6, 7]], 1) != shown([[6, 7]], 2)
    assert relative(shown([[6], [7]], 1)) == relative(shown([[6, 7]], 1))


def test_without_a_missing_box_a_batch_is_as_it_was():
    batch = made_up_batch([3, 0, 4])
    (same,) = missing([batch], 0.0, seed=0)
    assert torch.equal(same.boxes, batch.boxes) and torch.equal(same.ptr, batch.ptr) and same.names == batch.names
    assert same.attributes == {**batch.attributes, "asked": ["yes"] * 7}


def test_only_what_is_asked_counts():
    right = torch.tensor([True, False, True, True, False])
    attributes = {"asked": ["yes", "yes", "no", "yes", "no"], "kind": ["a", "a", "a", "b", "b"]}
    scores = Scores({}, {}, {}, {FINAL: (~right).int()}, torch.zeros(5, dtype=torch.int64), attributes, 2)
    assert accuracies(scores) == {"all": pytest.approx(2 / 3), "a": 0.5, "b": 1.0}
    del attributes["kind"]
    assert accuracies(scores) == {"all": pytest.approx(2 / 3)}
