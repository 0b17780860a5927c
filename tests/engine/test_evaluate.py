"""Evaluation: the figures of training come back from a checkpoint, and the files that hold them."""

import csv
import json
import shutil

import pytest
import torch
from PIL import Image

from irnet import metrics
from irnet.cli import main
from irnet.data.registry import open_dataset
from irnet.engine import checkpoint, distributed, evaluate
from irnet.engine.build import restore_model
from irnet.models.predictions import CONV, FINAL
from tests.engine import shared_steps

CPU = torch.device("cpu")


def run_eval(run, output, *more) -> dict:
    assert main(["eval", "--checkpoint", str(run), "--output-dir", str(output), "-j", "0", *more]) == 0
    return json.loads((output / "results.json").read_text())


def test_eval_gives_the_figures_of_training(trained, tmp_path, capsys):
    run_eval(trained, tmp_path)
    for name in ("results.json", "per_class.csv", "confusion.csv"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()
    out = capsys.readouterr().out
    assert "class ap" in out and "global 1" in out and str(tmp_path / "results.json") in out
    assert "gain in AP over the ConvNet" in out and "confusions, and how many" in out
    assert not (tmp_path / "vis").exists()


@pytest.mark.parametrize("source", [".", "checkpoints/last.safetensors"])
def test_eval_writes_into_the_run_folder(source, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for name in ("results.json", "per_class.csv"):
        (run / name).unlink()
    assert main(["eval", "--checkpoint", str(run / source), "-j", "0"]) == 0
    assert (run / "results.json").read_bytes() == (trained / "results.json").read_bytes()


def test_eval_from_the_best(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    best = checkpoint.load(run / "checkpoints" / checkpoint.BEST)
    best.step = 2
    best.model["classifier.weight"] *= -1
    checkpoint.save(run / "checkpoints" / checkpoint.BEST, best)
    last, found = run_eval(run, tmp_path / "last"), run_eval(run, tmp_path / "best", "--best")
    assert (last["step"], found["step"]) == (4, 2)
    assert last["metrics"] != found["metrics"]


def test_limit_batches_and_vis(trained, tmp_path, capsys):
    results = run_eval(trained, tmp_path, "-b", "1", "--limit-batches", "3", "--vis", "2")
    assert results["images"] == 3
    pictures = sorted((tmp_path / "vis").iterdir())
    assert [p.name for p in pictures] == ["000001_000001.png", "000002_000002.png"]
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.format == "PNG" and picture.width >= 900
    assert str(tmp_path / "vis") in capsys.readouterr().out


def test_batch_size_and_workers_do_not_matter(trained, tmp_path):
    whole = run_eval(trained, tmp_path / "a")
    single = run_eval(trained, tmp_path / "b", "-b", "1")
    workers = run_eval(trained, tmp_path / "c", "-j", "2")
    assert workers == whole
    for step, figures in whole["metrics"].items():
        assert single["metrics"][step] == pytest.approx(figures, abs=1e-6)


class Small(torch.nn.Module):
    """A model on a machine that has too little memory for more than `most` images at once; `calls` counts them."""

    def __init__(self, model, most, error):
        super().__init__()
        self.model, self.most, self.error, self.calls = model, most, error, []

    def forward(self, batch):
        self.calls.append(len(batch.images))
        if len(batch.images) > self.most:
            raise self.error
        return self.model(batch)


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
HOST = RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [CUDA, HOST, MemoryError()], ids=["cuda", "host", "python"])
def test_where_memory_ends_batches_are_halved(trained, error, caplog):
    saved = checkpoint.find(trained)
    data = open_dataset(saved.config.data, "val")
    model = restore_model(saved.config.model, len(saved.classes), saved.model)
    stream = lambda at_once: evaluate.held_out(data, saved.config, CPU, at_once)  # noqa: E731
    single = evaluate.collect(model, stream(1), CPU)
    small = Small(model, 1, error)
    found = evaluate.collect(small, stream(4), CPU)
    assert small.calls == [4, 2, 1, 1, 1, 1]  # what has failed once is not tried again
    assert "too little memory for 4 images at once; goes on with 2" in caplog.text
    assert found.metrics == single.metrics and found.attributes == single.attributes  # every bit
    assert torch.equal(found.right, single.right) and torch.equal(found.labels, single.labels)
    small = Small(model, 2, error)
    pairs = evaluate.collect(small, [*stream(3), *stream(4)], CPU)
    assert small.calls == [3, 2, 1, 1, 2, 2] and pairs.images == 8
    with pytest.raises(type(error)):
        evaluate.collect(Small(model, 0, error), stream(2), CPU)


def test_an_error_that_is_not_about_memory_is_no_reason_to_go_on(trained):
    saved = checkpoint.find(trained)
    data = open_dataset(saved.config.data, "val")
    small = Small(None, 1, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        evaluate.collect(small, evaluate.held_out(data, saved.config, CPU, 4), CPU)
    assert small.calls == [4]


def test_an_image_has_the_same_scores_in_any_batch(trained):
    """In float64 to 1e-12: nothing of other images enters, but products of more rows may be rounded elsewhere."""
    saved = checkpoint.find(trained)
    data = open_dataset(saved.config.data, "val")
    model = restore_model(saved.config.model, len(saved.classes), saved.model).double().eval()

    def logits(at_once):
        found = []
        for batch in evaluate.held_out(data, saved.config, CPU, at_once):
            batch.images = [image.double() for image in batch.images]
            with torch.no_grad():
                found.append(torch.stack(list(model(batch).with_final().values())))
        return torch.cat(found, 1)

    for at_once in (2, 3, 4):
        torch.testing.assert_close(logits(at_once), logits(1), rtol=1e-12, atol=1e-12)


LARGEST = 64 * 96  # pixels of an image of `Ragged`


@pytest.mark.parametrize(
    ("budget", "parts", "images"),
    [(0, 1, 8), (0, 2, 4), (2 * LARGEST, 1, 2), (3 * LARGEST - 1, 1, 2), (5 * LARGEST, 2, 2), (1, 2, 1)],
)
def test_evaluation_keeps_within_the_pixels_of_a_batch(budget, parts, images, monkeypatch):
    """Whatever the order of images of several sizes; several processes have the batches that one has."""
    config = shared_steps.settings("conv", max_batch_pixels=budget, grad_accum_steps=parts)
    held_out = lambda: evaluate.held_out(shared_steps.Ragged(), config, CPU)  # noqa: E731
    whole = list(held_out())
    assert max(len(batch.images) for batch in whole) == images
    for batch in whole:
        pixels = sum(image[0].numel() for image in batch.images)
        assert len(batch.images) == 1 or not budget or pixels <= budget / parts
    shares = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "share", lambda rank=rank: (rank, 3))
        shares.append([batch.names for batch in held_out()])
    assert [shares[i % 3][i // 3] for i in range(len(whole))] == [batch.names for batch in whole]


def test_eval_plans_for_its_memory(trained, tmp_path, capsys, caplog, refused):
    whole = run_eval(trained, tmp_path / "a")
    caplog.set_level("INFO", "irnet")
    planned = run_eval(trained, tmp_path / "b", "--memory", "1GiB", "-b", "1")
    assert "planned for 1.00 GiB of memory: 4 images at once" in caplog.text  # all that there are
    for step, figures in whole["metrics"].items():
        assert planned["metrics"][step] == pytest.approx(figures, abs=1e-6)
    limited = run_eval(trained, tmp_path / "c", "--memory", "1GiB", "-b", "1", "--limit-batches", "3")
    assert limited["images"] == 3  # batches of -b, whatever goes through the model together
    words = ("eval", "--checkpoint", trained, "--output-dir", tmp_path / "d", "-j", "0", "--memory", "10KiB")
    refused(words, "--memory: an evaluation of one image of ", "not 10.00 KiB; take smaller images")


@pytest.fixture(scope="module")
def scores(trained):
    saved = checkpoint.find(trained)
    data = open_dataset(saved.config.data, "val")
    model = restore_model(saved.config.model, len(saved.classes), saved.model)
    model.train()
    found = evaluate.collect(model, evaluate.held_out(data, saved.config, CPU), CPU)
    assert model.training  # as it was
    return found, data


def in_memory(model, batches) -> tuple[dict, torch.Tensor]:
    """All soft-max scores of all predictions, and the labels."""
    parts, labels = {}, []
    with torch.no_grad():
        for batch in batches:
            for key, logits in model.eval()(batch).with_final().items():
                parts.setdefault(key, []).append(logits.float().softmax(1))
            labels.append(batch.labels)
    return {key: torch.cat(values) for key, values in parts.items()}, torch.cat(labels)


def test_collected_scores_are_those_in_memory(scores, trained):
    found, data = scores
    assert torch.equal(found.labels, torch.cat(data.image_labels())) and found.images == 4
    assert [str(key) for key in found.metrics] == ["final", "conv", "local 1", "global 1"]
    saved = checkpoint.find(trained)
    model = restore_model(saved.config.model, len(saved.classes), saved.model)
    whole, labels = in_memory(model, evaluate.held_out(data, saved.config, CPU))
    assert found.metrics == {key: metrics.evaluate(values, labels) for key, values in whole.items()}  # every bit
    assert found.per_class == {key: metrics.per_class(whole[key], labels) for key in (FINAL, CONV)}
    assert all(torch.equal(found.predicted[key], scores.argmax(1).int()) for key, scores in whole.items())
    assert torch.equal(found.right, whole[FINAL].argmax(1) == labels)
    summary = evaluate.summarise(found)
    with torch.no_grad():
        given = [model.eval()(batch).attention for batch in evaluate.held_out(data, saved.config, CPU)]
    assert list(summary["attention"]) == ["conv", "local 1", "global 1"]
    assert list(summary["attention"].values()) == torch.cat(given, 1).double().mean(1).tolist()
    assert sum(summary["attention"].values()) == pytest.approx(1, abs=1e-6)
    kinds = found.attributes["kind"]
    assert summary["regions"] == len(found.labels) == len(kinds) and list(found.attributes) == ["kind"]
    assert set(summary["accuracy_by_kind"]) == set(kinds)
    shares = [kinds.count(kind) * value for kind, value in summary["accuracy_by_kind"].items()]
    accuracy = summary["metrics"]["final"]["instance_accuracy"]
    assert sum(shares) / len(kinds) == pytest.approx(accuracy, abs=1e-12)


def test_per_class_table(scores, trained):
    found, data = scores
    with open(trained / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    gains = {"accuracy_gain": "accuracy", "ap_gain": "ap"}
    assert list(rows[0]) == ["class", "regions", "score", "accuracy", "ap", "conv_accuracy", "conv_ap", *gains]
    assert [row["class"] for row in rows] == data.classes
    assert [int(row["regions"]) for row in rows] == found.labels.bincount(minlength=19).tolist()
    for c, row in enumerate(rows):
        after, before = (found.per_class[key][c] for key in (FINAL, CONV))
        if not after["regions"]:
            assert {value for key, value in row.items() if key not in ("class", "regions")} == {""}
            continue
        for key in ("score", "accuracy", "ap"):
            assert float(row[key]) == pytest.approx(after[key], abs=5e-7)
        for gain, key in gains.items():
            assert float(row[f"conv_{key}"]) == pytest.approx(before[key], abs=5e-7)
            assert float(row[gain]) == pytest.approx(after[key] - before[key], abs=5e-7)
    assert any(not row["regions"] for row in found.per_class[FINAL].values())


def test_confusions_are_those_of_the_matrices(scores, trained):
    found, data = scores
    with open(trained / "confusion.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    dense = {key: torch.zeros(19, 19, dtype=torch.int64) for key in ("regions", "conv_regions", "resolved", "made")}
    for true, before, after in zip(found.labels, found.predicted[CONV], found.predicted[FINAL], strict=True):
        dense["regions"][true, after] += 1
        dense["conv_regions"][true, before] += 1
        dense["resolved"][true, before] += bool(before != true and after == true)
        dense["made"][true, after] += bool(before == true and after != true)
    index = {name: c for c, name in enumerate(data.classes)}
    for row in rows:
        for key, matrix in dense.items():
            at = index[row["true"]], index[row["predicted"]]
            assert int(row[key]) == matrix[at]
            matrix[at] = 0
    assert not any(matrix.any() for matrix in dense.values()) and len(rows) > 1
    assert [int(row["regions"]) for row in rows] == sorted((int(row["regions"]) for row in rows), reverse=True)


def test_class_names_that_need_quotes(scores, tmp_path):
    found, data = scores
    names = ['a, "b"', *data.classes[1:]]
    evaluate.write(tmp_path, evaluate.summarise(found), found, names)
    with open(tmp_path / "per_class.csv", newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == names


def test_table_text(scores):
    lines = evaluate.table_text(evaluate.summarise(scores[0])).splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1


def test_split_without_boxes(trained, scenes_root, refused, tmp_path):
    root = tmp_path / "scenes"
    shutil.copytree(scenes_root, root)
    path = root / "annotations/instances_val.json"
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | {"annotations": []}))
    arguments = ["eval", "--checkpoint", trained, "--data-root", root, "--output-dir", tmp_path / "out"]
    refused(arguments, path, "4 images hold no region", "annotated boxes")
    table["annotations"] = [a for a in table["annotations"] if a["image_id"] == 4]
    path.write_text(json.dumps(table))
    refused([*arguments, "-b", "1", "--limit-batches", "2", "-j", "0"], "2 images hold no region")
    assert not (tmp_path / "out").exists()
    assert run_eval(trained, tmp_path / "out", "--data-root", str(root))["images"] == 4
