"""Processes that each hold some rows of the model: what they hold, the file that they write together, and its ends."""

import contextlib
import dataclasses
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

from irnet.cli import main
from irnet.config import Config, ModelConfig, TrainConfig
from irnet.engine import checkpoint
from irnet.engine.fit import fit_of, fitted, made_up_edges
from irnet.engine.memory import Scene, with_train
from irnet.engine.memory_shared import held_meanwhile, planned_share
from irnet.errors import InputError
from tests.engine import shared_steps
from tests.engine.groups import EVALS, failing, kill_at_random, recording, torchrun
from tests.engine.recorded import images_of
from tests.engine.tools import DIE_WRITING, LIMIT, assert_same_run, assert_same_tensors, lines

FSDP = ("--parallel", "fsdp")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, train_arguments, irnet) -> Path:
    """Not to be changed: a folder with `run`, of two processes that share weights, and the record of its images."""
    from tests.engine.groups import Group

    folder = tmp_path_factory.mktemp("sharded")
    words = train_arguments(folder / "run", *EVALS, *FSDP, steps=7, batch=3)
    Group(irnet, words, 2, recording(folder / "images.jsonl")).end()
    return folder


def last(folder: Path) -> checkpoint.Checkpoint:
    return checkpoint.load(folder / "checkpoints" / checkpoint.LAST)


# ---------------------------------------------------------------------------------------------------------- the memory


def test_each_of_four_processes_holds_a_quarter(group, tmp_path):
    """Of parameters, gradients and moments; and after a step nothing else of their size is there."""
    words = (
        f"from tests.engine import shared_steps; shared_steps.run_held({str(tmp_path / 'held')!r}); raise SystemExit"
    )
    group([], 4, words).end()
    found = [json.loads((tmp_path / f"held.{rank}").read_text()) for rank in range(4)]
    assert len({each["whole"] for each in found}) == 1
    assert sum(each["moments"] for each in found) == found[0]["whole"]
    for each in found:
        for kind in ("parameters", "gradients", "moments"):
            assert each[kind] <= each["rows"] < 0.27 * each["whole"], (kind, each)
        assert each["all"] - each["buffers"] < 0.8 * each["whole"], each


# ------------------------------------------------------------------------------------------------------ the checkpoint


def test_checkpoint_is_the_same_for_any_number_of_processes(group, train_arguments, irnet, whole, tmp_path):
    """Going on without a step writes what was read, to the bit, whoever holds it."""
    output = shutil.copytree(whole / "run", tmp_path / "run")
    before = last(output)
    for processes, parallel in ((4, "fsdp"), (1, "fsdp"), (2, "ddp"), (3, "fsdp")):
        (output / "checkpoints" / checkpoint.PREVIOUS).unlink(missing_ok=True)
        words = train_arguments(output, *EVALS, "--resume", "--parallel", parallel, steps=7, batch=3)
        group(words, processes).end()
        found = last(output)
        assert found.step == before.step and found.config.train.parallel == parallel
        assert_same_tensors(found.model, before.model)
        assert_same_tensors(found.optimizer, before.optimizer)
        assert (output / "checkpoints" / checkpoint.PREVIOUS).exists()  # it was written again
    assert (output / "results.json").read_text() == (whole / "run/results.json").read_text()


def test_run_goes_on_with_other_processes(group, train_arguments, tmp_path):
    """Sharded and not; the images of every step stay those of one process, and the losses nearly so."""
    sgd = ("train.optimizer=sgd", "train.lr=0.01", "train.cosine=false")  # AdamW makes whole steps of rounding errors
    group(train_arguments(tmp_path / "one", *sgd, steps=8, batch=3), 1, recording(tmp_path / "one.jsonl")).end()
    ways = ((2, 2, "fsdp", 1), (4, 4, "fsdp", 3), (5, 1, "auto", 1), (6, 2, "ddp", 1), (8, 2, "fsdp", 3))
    for steps, processes, parallel, parts in ways:
        words = ["--resume"] * (steps > 2) + ["--parallel", parallel, "--grad-accum-steps", str(parts)]
        words = train_arguments(tmp_path / "run", *sgd, *words, steps=steps, batch=3)
        group(words, processes, recording(tmp_path / "run.jsonl")).end()
    assert images_of(tmp_path / "run.jsonl") == images_of(tmp_path / "one.jsonl")
    assert last(tmp_path / "run").extra["position"] == last(tmp_path / "one").extra["position"] == [2, 6]
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, 9))
    for found, expected in zip(lines(tmp_path / "run"), lines(tmp_path / "one"), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_one_process_uses_what_several_wrote(whole, irnet, tmp_path):
    irnet.run(["eval", "--checkpoint", whole / "run", "--output-dir", tmp_path / "eval"])
    for name in ("results.json", "per_class.csv"):
        assert (tmp_path / "eval" / name).read_text() == (whole / "run" / name).read_text()


def test_process_killed_while_all_write_leaves_the_checkpoint_before(whole, group, train_arguments, tmp_path):
    words = train_arguments(tmp_path / "run", *EVALS, *FSDP, "train.checkpoint_every=1", steps=7, batch=3)
    death = DIE_WRITING.format(name=checkpoint.LAST, at=3)
    started = group(words, 2, f"import os\nif os.environ['RANK'] == '1':\n exec({death!r})\n")
    started.end(2, -signal.SIGKILL)
    assert last(tmp_path / "run").step == 2
    group([*words, "--resume"], 2).end()
    assert_same_run(tmp_path / "run", whole / "run")


def test_file_that_does_not_hold_what_was_written_is_not_taken(group, train_arguments, tmp_path):
    """As on a file system where what one machine writes wipes out the pages of another."""
    lose = """
import os, shutil
from pathlib import Path
if os.environ["RANK"] == "1":
    from irnet.engine import checkpoint
    real, count = checkpoint._write_rows, 0
    def write_rows(path, begin, tensors):
        global count
        count += 1
        if count == 2:
            path = Path(shutil.copy(path, path.with_suffix(".elsewhere")))
        return real(path, begin, tensors)
    checkpoint._write_rows = write_rows
"""
    words = train_arguments(tmp_path / "run", *FSDP, "train.checkpoint_every=1")
    started = group(words, 2, lose)
    started.end(2)
    (line,) = started.said
    assert "does not hold what rank 1 wrote into it; choose a file system" in line
    assert last(tmp_path / "run").step == 1


# ------------------------------------------------------------------------------------------------- deaths and restarts


def test_torchrun_brings_a_killed_run_back(whole, train_arguments, tmp_path):
    words = train_arguments(tmp_path / "run", *EVALS, *FSDP, steps=7, batch=3)
    done = torchrun(["-m", "tests.engine.recorded", tmp_path / "images.jsonl", "1:4", *words], 2, restarts=1)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr
    assert_same_run(tmp_path / "run", whole / "run")
    assert images_of(tmp_path / "images.jsonl") == images_of(whole / "images.jsonl")


def test_group_killed_at_random_moments_goes_on(whole, group, train_arguments, tmp_path):
    words = [*EVALS, *FSDP, "--resume", "train.checkpoint_every=1"]
    kill_at_random(group, train_arguments(tmp_path / "run", *words, steps=7, batch=3), tmp_path / "images.jsonl")
    assert_same_run(tmp_path / "run", whole / "run")
    assert images_of(tmp_path / "images.jsonl") == images_of(whole / "images.jsonl")


# ---------------------------------------------------------------------------------------------------------- one line


@pytest.mark.parametrize("rank", [0, 1])
def test_one_failure_ends_all_and_is_told_once(rank, group, train_arguments, tmp_path):
    """What is left is the last checkpoint: the others' parts of the step after it are gone."""
    error = 'raise InputError("data/7.png", "is truncated", "restore it")'
    started = group(train_arguments(tmp_path / "run", *FSDP), 2, failing(rank, 4, error))
    started.end(2)
    (line,) = started.said
    assert line.startswith(f"irnet: rank {rank}: data/7.png: is truncated; restore it")
    assert "Traceback" not in started.err
    assert ("step 2 is saved in" in line and "(step 3 is lost: each process" in line) == (rank == 0)
    assert last(tmp_path / "run").step == 2


def test_signal_to_one_process_ends_all_after_the_same_step(whole, group, train_arguments, tmp_path):
    words = train_arguments(tmp_path / "run", *EVALS, *FSDP, steps=7, batch=3)
    started = group(words, 2, failing(1, 3, "os.kill(os.getpid(), signal.SIGTERM)"))
    started.end(128 + signal.SIGTERM)
    (line,) = started.said
    assert line.startswith("irnet: SIGTERM: ended after step 3; step 3 is saved")
    group([*words, "--resume"], 2).end()
    assert_same_run(tmp_path / "run", whole / "run")


def test_full_disk_of_one_process_is_one_line(group, train_arguments, tmp_path):
    limit = f"import os\nif os.environ['RANK'] == '1':\n exec({LIMIT.format(2000)!r})\n"
    started = group(train_arguments(tmp_path / "run", *FSDP), 2, limit)
    started.end(2)
    (line,) = started.said
    assert line.startswith("irnet: rank 1: ") and "last.safetensors: cannot be written (File too large)" in line
    assert not list((tmp_path / "run/checkpoints").glob("*"))


@pytest.mark.parametrize("full", [0, 1])
def test_signal_while_the_disk_of_one_process_is_full(full, group, train_arguments, tmp_path):
    """Told by rank 0, with the reason, whoever could not write; the checkpoint before stays."""
    output = tmp_path / "run"
    first = (
        failing(0, 3, "os.kill(os.getpid(), signal.SIGTERM)")
        + f"""
import resource
from irnet.engine import checkpoint
save = checkpoint.save
def save_third(path, state):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if state.step == 3 and os.environ["RANK"] == "{full}":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        save(path, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
checkpoint.save = save_third
"""
    )
    started = group(train_arguments(output, *FSDP, steps=7), 2, first)
    started.end(128 + signal.SIGTERM)
    (line,) = started.said
    assert line.startswith(f"irnet: SIGTERM: ended after step 3; step 2 is saved in {output}/checkpoints/last")
    assert "(step 3 could not be saved: " in line and "last.safetensors: cannot be written (File too large))" in line
    assert last(output).step == 2


def test_weight_of_one_number_is_refused(group, train_arguments, tmp_path):
    started = group(train_arguments(tmp_path / "run", *FSDP, "model.learn_geometry=true"), 2)
    started.end(2)
    (line,) = started.said
    assert "--parallel fsdp: cannot split a weight that is one number (graph.layers.0.log_bandwidth)" in line


def test_tensors_of_predictions_are_found_by_every_torch(group, tmp_path):
    """Up to torch 2.11 FSDP2 sees the leaves of what a model gives, and behind no others reduces any gradient."""
    look = """
import torch
from torch.utils._pytree import tree_leaves
from irnet.data.loader import blank
from irnet.engine import distributed, sharded
from tests.engine import shared_steps
with distributed.joined("cpu"):
    for _ in range(2):
        model = shared_steps.model_of(shared_steps.settings("local"))
        sharded.shard(model, "off")
    batch = blank()
    batch.images = [image.double() for image in batch.images]
    leaves = tree_leaves(model(batch))
    assert len(leaves) > 3 and all(isinstance(leaf, torch.Tensor) for leaf in leaves), leaves
raise SystemExit
"""
    group([], 1, look).end()


def test_gradients_that_are_not_exchanged_end_the_run(group, train_arguments, tmp_path):
    """As where FSDP2 finds no tensor in what a model gives."""
    hide = """
import types
from irnet.models.irnet import IRNet
real = IRNet.forward
IRNet.forward = lambda self, batch: types.SimpleNamespace(**vars(real(self, batch)))
"""
    started = group(train_arguments(tmp_path / "run", *FSDP, steps=2, batch=3), 2, hide)
    started.end(2)
    (line,) = started.said
    assert "--parallel fsdp: torch " in line
    assert "has exchanged no gradients of some weights; use --parallel ddp" in line
    assert not list((tmp_path / "run/checkpoints").glob("*"))


# ---------------------------------------------------------------------------------------------- averages of the weights


def test_an_average_is_shared_as_its_weights_are(group, train_arguments, tmp_path):
    """It goes on in another number of processes, and an evaluation is of it."""
    sgd = ("train.optimizer=sgd", "train.lr=0.01", "train.cosine=false", "train.ema=0.9")
    group(train_arguments(tmp_path / "one", *sgd, steps=6), 1).end()
    group(train_arguments(tmp_path / "run", *sgd, *FSDP, steps=3), 2).end()
    group(train_arguments(tmp_path / "run", *sgd, *FSDP, "--resume", steps=6), 4).end()
    one, run = last(tmp_path / "one"), last(tmp_path / "run")
    assert run.trained.keys() == one.trained.keys() and one.trained
    for found, expected in ((run.model, one.model), (run.trained, one.trained)):
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
    best = checkpoint.load(tmp_path / "run/checkpoints" / checkpoint.BEST)
    assert not best.trained
    assert any(not torch.equal(t, run.trained[name]) for name, t in best.model.items() if name in run.trained)


# ------------------------------------------------------------------------------------------------------ mixed precision


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_as_one_process_does(amp, group, train_arguments, irnet, tmp_path):
    """Weights stay float32 between steps, and the evaluation is that of a single process to the bit."""
    group(train_arguments(tmp_path / "one", "--amp", amp), 1).end()
    group(train_arguments(tmp_path / "two", *FSDP, "--amp", amp), 2).end()
    one, two = last(tmp_path / "one"), last(tmp_path / "two")
    assert {t.dtype for t in two.model.values() if t.is_floating_point()} == {torch.float32}
    assert two.extra["scaler"] == one.extra["scaler"]
    irnet.run(["eval", "--checkpoint", tmp_path / "two", "--output-dir", tmp_path / "eval"])
    assert (tmp_path / "eval/results.json").read_text() == (tmp_path / "two/results.json").read_text()
    for found, expected in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=0.02)


# ------------------------------------------------------------------------------------------------------------ the plan


@pytest.mark.parametrize(
    "train",
    [
        {"parallel": "fsdp", "batch_size": 8},
        {"parallel": "fsdp", "batch_size": 16, "grad_accum_steps": 2, "optimizer": "adamw", "clip_norm": 1.0},
        {"parallel": "fsdp", "batch_size": 12, "ema": 0.9, "max_batch_pixels": 8 * 96 * 96},
    ],
    ids=lambda train: "-".join(map(str, train.values())),
)
def test_peak_of_one_of_four_processes_is_planned(train, group, tmp_path):
    words = f"{str(tmp_path / 'peaks')!r}, {json.dumps(train)!r}"
    group([], 4, f"from tests.engine import shared_steps as s; s.run_peaks({words}); raise SystemExit").end()
    for rank in range(4):
        found = json.loads((tmp_path / f"peaks.{rank}").read_text())
        assert found["planned"] == pytest.approx(found["real"], rel=0.05), found


def test_weights_are_shared_where_they_do_not_fit():
    """`auto` is ddp while that fits in some number of parts, then fsdp."""
    model = ModelConfig(variant="conv", backbone="small", backbone_channels=96)
    settings = Config(model, train=TrainConfig(batch_size=4, optimizer="adamw"))
    scene, ways = Scene(32, 32, (2,), 4), ("ddp", "fsdp")
    whole, rows = (fit_of(with_train(settings, parallel=way), scene, False, 4).footprint.total for way in ways)
    assert rows < 0.8 * whole
    for memory, way in ((whole, "ddp"), (whole - 1, "fsdp"), (rows, "fsdp")):
        found = fitted(settings, scene, memory, False, 4)
        assert (found.config.train.parallel, found.micro_batch) == (way, 1) and found.footprint.total <= memory


def test_weights_that_cannot_be_split_are_not_shared():
    """Where no number of parts fits with ddp, that is said, though a plan with fsdp would take less."""
    model = ModelConfig(variant="global", backbone="small", backbone_channels=96, graph_channels=8, hidden=8)
    scene, refusal = (
        Scene(32, 32, (2,), 4, made_up_edges(4)),
        "fits into .* with these settings|fits into .*; the least",
    )
    for learned in (False, True):
        model = dataclasses.replace(model, learn_geometry=learned)
        settings = Config(model, train=TrainConfig(batch_size=4, optimizer="adamw"))
        memory = fit_of(with_train(settings, parallel="ddp"), scene, False, 4).footprint.total - 1
        with pytest.raises(InputError, match=refusal) if learned else contextlib.nullcontext():
            assert fitted(settings, scene, memory, False, 4).config.train.parallel == "fsdp"


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_an_evaluation_leaves_room_for_the_average(parallel):
    settings = shared_steps.settings("conv", parallel=parallel)
    model, scene = shared_steps.model_of(settings).float(), Scene(64, 64, (2,), 3)
    without, within = (
        held_meanwhile(config, planned_share(config, scene, 4), model, 4)
        for config in (settings, with_train(settings, ema=0.9))
    )
    each = [p.nbytes // len(p) * (-(-len(p) // 4) if parallel == "fsdp" else len(p)) for p in model.parameters()]
    assert within - without == sum(each)


def test_plan_of_one_of_several_processes_is_printed(capsys, refused):
    words = ["plan", "--small", "-b", "8", "--size", "64x64", "--regions", "2", "--device", "cpu", "--processes", "4"]
    assert main([*words, "--parallel", "fsdp"]) == 0
    assert "in one of 4 processes, 2 images at a time" in capsys.readouterr().out
    assert "nothing is measured" in refused([*words, "--measure"])
