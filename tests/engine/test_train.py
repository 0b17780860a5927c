"""Training: killed runs go on to the same bits, the order of the data, options that change no result."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from irnet import progress
from irnet.cli import main
from irnet.engine import checkpoint, state, train
from irnet.errors import InputError
from tests.engine.tools import DIE_RENAMING, DIE_WRITING, assert_same_run, assert_same_tensors, edit, lines

CPU = torch.device("cpu")
EVALS = ("train.eval_every=3",)


# -------------------------------------------------------------------------------------------------- killed and resumed


VARIATIONS = {
    "adamw": [],
    "sgd, accumulated": ["--grad-accum-steps", "2", "train.optimizer=sgd", "train.lr=0.05", "data.flip=true"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, train_arguments, irnet):
    """Uninterrupted runs of seven steps by variation, each trained once."""
    runs = {}

    def run(name: str) -> Path:
        if name not in runs:
            runs[name] = tmp_path_factory.mktemp("whole") / "run"
            irnet.run(train_arguments(runs[name], *EVALS, *VARIATIONS[name], steps=7, batch=2))
        return runs[name]

    return run


@pytest.mark.parametrize("name", VARIATIONS)
def test_killed_run_goes_on_to_the_same_bits(name, whole, train_arguments, irnet, tmp_path):
    output = tmp_path / "run"
    arguments = train_arguments(output, *EVALS, *VARIATIONS[name], "--resume", steps=7, batch=2)
    # Before the first checkpoint, and in its midst.
    irnet.start(arguments).kill_when(lambda: len(lines(output)) >= 1)
    assert irnet.start(arguments, DIE_WRITING.format(name="last.safetensors", at=1)).wait() == -signal.SIGKILL
    assert not checkpoint.exists(output) and len(lines(output)) == 2
    # In the midst of the second checkpoint; then of the renames that put one in its place; then of the best one.
    assert irnet.start(arguments, DIE_WRITING.format(name="last.safetensors", at=2)).wait() == -signal.SIGKILL
    assert checkpoint.find(output).step == 2
    assert irnet.start(arguments, DIE_RENAMING.format(name="/last.safetensors", at=2)).wait() == -signal.SIGKILL
    assert not (output / "checkpoints" / checkpoint.LAST).exists() and checkpoint.find(output).step == 4
    assert irnet.start(arguments, DIE_RENAMING.format(name="/previous.safetensors", at=1)).wait() == -signal.SIGKILL
    assert checkpoint.find(output).step == 4
    irnet.start(arguments).kill_when(lambda: len(lines(output)) >= 6)
    # After the last step, while the results are written.
    assert irnet.start(arguments, DIE_WRITING.format(name="results.json", at=1)).wait() == -signal.SIGKILL
    irnet.run(arguments)
    assert_same_run(output, whole(name))


def test_run_killed_while_it_saves_its_best_goes_on(whole, train_arguments, irnet, tmp_path):
    output = tmp_path / "run"
    arguments = train_arguments(output, *EVALS, "--resume", steps=7, batch=2)
    for death in (DIE_WRITING, DIE_RENAMING):
        first = death.format(name="best.safetensors", at=1)
        assert irnet.start(arguments, first).wait() == -signal.SIGKILL
    irnet.run(arguments)
    assert_same_run(output, whole("adamw"))


def test_checkpoint_knows_the_metric_of_its_own_step(train_arguments, irnet, tmp_path):
    """Or a run that goes on from it would take a worse one for its best."""
    more = ["train.eval_every=2", "train.checkpoint_every=1"]
    die = DIE_RENAMING.format(name="/last.safetensors", at=3)
    irnet.run(train_arguments(tmp_path / "run", *more, batch=2), die, code=-signal.SIGKILL)
    last, best = (checkpoint.find(tmp_path / "run", name) for name in (checkpoint.LAST, checkpoint.BEST))
    assert last.step == best.step == 2 and last.extra["best"] == best.extra["best"] > 0


def test_run_killed_at_random_moments_goes_on(whole, train_arguments, irnet, tmp_path):
    output, draw = tmp_path / "run", random.Random(0)
    arguments = train_arguments(output, *EVALS, "--resume", "train.checkpoint_every=1", steps=7, batch=2)
    for _ in range(5):
        end = time.monotonic() + draw.uniform(0.1, 1.2)
        process = irnet.start(arguments)
        while time.monotonic() < end:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)  # one that is done waits for its parent, so the signal hits nobody else
        assert process.wait() in (0, -signal.SIGKILL), process.err
    irnet.run(arguments)
    assert_same_run(output, whole("adamw"))


END_EVALUATING = """
import os, signal
from irnet.engine import evaluate
real = evaluate.collect
def collect(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return real(*arguments)
evaluate.collect = collect
"""


def test_run_ended_within_an_evaluation_makes_up_for_it(whole, train_arguments, irnet, tmp_path):
    output = tmp_path / "run"
    arguments = train_arguments(output, *EVALS, "--resume", steps=7, batch=2)
    for _ in range(2):  # the second ends within the evaluation that makes up for the first
        assert irnet.start(arguments, END_EVALUATING).wait() == 128 + signal.SIGTERM
        assert checkpoint.find(output).step == 3 == lines(output)[-1]["step"]
        assert not (output / "checkpoints" / checkpoint.BEST).exists()
    irnet.run(arguments)
    assert_same_run(output, whole("adamw"))


def test_command_killed_and_resumed_writes_no_carriage_returns(whole, train_arguments, irnet, tmp_path):
    output = tmp_path / "run"
    root = Path(train.__file__).parents[2]
    env = os.environ | {"PYTHONPATH": f"{root}:{root / 'kernels'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "irnet.cli", *train_arguments(output, *EVALS, steps=7, batch=2)]
    with open(tmp_path / "err", "wb") as err:
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=err)
        while len(lines(output)) < 3 and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL, (tmp_path / "err").read_text()
    finished = irnet.run(train_arguments(output, *EVALS, "--resume", steps=7, batch=2))
    assert_same_run(output, whole("adamw"))
    text = (tmp_path / "err").read_text()
    assert "step 3 of 7: loss" in text and "going on from step 2" in finished.err
    assert "\r" not in text + finished.err + finished.out


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_bits(workers, whole, train_arguments, irnet, tmp_path):
    irnet.run(train_arguments(tmp_path / "run", *EVALS, f"train.workers={workers}", steps=7, batch=2))
    assert_same_run(tmp_path / "run", whole("adamw"))


def test_two_threads_go_on_to_the_same_bits(train_arguments, irnet, tmp_path):
    threads = "import torch; torch.set_num_threads(2)"
    irnet.run(train_arguments(tmp_path / "whole"), threads)
    output = tmp_path / "run"
    irnet.start(train_arguments(output), threads).kill_when(lambda: len(lines(output)) >= 3)
    irnet.run(train_arguments(output, "--resume"), threads)
    one, two = (checkpoint.find(tmp_path / name) for name in ("run", "whole"))
    assert_same_tensors(one.model, two.model)
    assert_same_tensors(one.optimizer, two.optimizer)


def test_damaged_last_checkpoint_is_replaced_by_the_previous(whole, train_arguments, irnet, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(whole("adamw"), output)
    last, previous = (output / "checkpoints" / name for name in (checkpoint.LAST, checkpoint.PREVIOUS))
    irnet.run(
        train_arguments(tmp_path / "half", *EVALS, steps=7, batch=2),
        code=-9,
        first=DIE_WRITING.format(name="last.safetensors", at=3),
    )
    shutil.copy(tmp_path / "half/checkpoints" / checkpoint.PREVIOUS, previous)  # of step 2
    last.write_bytes(last.read_bytes()[:-100])
    process = irnet.run(train_arguments(output, *EVALS, "--resume", steps=7, batch=2))
    assert "is truncated" in process.err and "using previous.safetensors" in process.err
    assert f"going on from step 2, {previous}" in (output / "log.txt").read_text()
    assert_same_run(output, whole("adamw"))


# -------------------------------------------------------------------------------------------- the position in the data


def seen(monkeypatch) -> list[list[str]]:
    """The names of every batch that is trained on from now on."""
    names = []
    real = train.train_step

    def train_step(model, batch, *more):
        names.append(batch.names)
        return real(model, batch, *more)

    monkeypatch.setattr(train, "train_step", train_step)
    return names


@pytest.mark.parametrize(("batch", "position"), [(1, (0, 4)), (4, (0, 4)), (8, (0, 0)), (3, (0, 3))])
def test_position_in_the_data_follows_from_the_images_seen(batch, position, train_arguments, monkeypatch, tmp_path):
    """Two steps of two images of eight, then batches of another size."""
    output = tmp_path / "run"
    assert main(train_arguments(output, steps=2, batch=2)) == 0
    assert checkpoint.find(output).extra["position"] == [0, 4]
    names, positions, take_step = seen(monkeypatch), [], train._take_step
    monkeypatch.setattr(train, "_take_step", lambda *given: [positions.append(given[-1]), take_step(*given)][1])
    left = -(-(8 - position[1]) // batch)
    assert main(train_arguments(output, "--resume", steps=2 + left, batch=batch)) == 0
    assert checkpoint.find(output).extra["position"] == [1, 0]
    assert sum(map(len, names)) == 8 - position[1]  # the epoch is gone through to its end
    ends = range(position[1] + batch, 8, batch)  # of the batches, in a run that has this size from the start
    assert positions == [*((0, end) for end in ends), (1, 0)]
    resumed = names.copy()
    names.clear()
    assert main(train_arguments(tmp_path / "whole", steps=-(-8 // batch), batch=batch)) == 0
    assert resumed == names[position[1] // batch :]


@pytest.mark.parametrize("stops", [(1,), (2, 3)])
def test_batches_of_a_budget_go_on_to_the_same_bits(stops, train_arguments, monkeypatch, tmp_path):
    """From any step, into a second epoch."""
    names, runs = seen(monkeypatch), {}
    for name, ends in (("whole", (7,)), ("many", (*stops, 7))):
        names.clear()
        for end in ends:
            words = [] if end == ends[0] else ["--resume"]
            words += ["train.max_batch_regions=24", "train.cosine=false"]
            assert main(train_arguments(tmp_path / name, *words, steps=end)) == 0
        runs[name] = names.copy(), checkpoint.find(tmp_path / name)
    (images, one), (same, many) = runs.values()
    assert images == same and len(set(map(len, images))) > 1
    assert one.extra["position"] == many.extra["position"] and one.extra["position"][0] > 0
    assert_same_tensors(one.model, many.model)
    assert_same_tensors(one.optimizer, many.optimizer)


def test_batch_size_changed_twice_goes_on_to_the_same_bits(train_arguments, tmp_path):
    """A run that has changed its batch size is resumed as exactly as any other."""
    for name, stops in (("one", (6,)), ("many", (3, 4, 5, 6))):
        output = tmp_path / name
        assert main(train_arguments(output, "train.cosine=false", steps=1, batch=3)) == 0
        for steps in stops:
            assert main(train_arguments(output, "train.cosine=false", "--resume", steps=steps, batch=2)) == 0
    one, many = (checkpoint.find(tmp_path / name) for name in ("one", "many"))
    assert one.extra["position"] == many.extra["position"]
    assert all(torch.equal(one.model[name], tensor) for name, tensor in many.model.items())


# ----------------------------------------------------------------------------------------------- options of whole runs


def test_options_of_one_run(train_arguments, tmp_path, capsys):
    more = ["--amp", "bf16", "--deterministic", "--grad-checkpointing", "--max-regions", "2", "--limit-batches", "1"]
    assert main(train_arguments(tmp_path / "run", *more, steps=2)) == 0
    config = checkpoint.find(tmp_path / "run").config
    assert config.train.amp == "bf16" and config.train.deterministic and config.train.grad_checkpointing
    assert torch.are_deterministic_algorithms_enabled()
    log = (tmp_path / "run/log.txt").read_text()
    assert "16 boxes" in log and "over max_regions" in log  # eight images of two
    state = checkpoint.find(tmp_path / "run")
    assert all(t.dtype == torch.float32 for t in state.model.values() if t.is_floating_point())
    assert json.loads((tmp_path / "run/results.json").read_text())["images"] == 4


def test_limit_batches_limits_evaluation(train_arguments, tmp_path, capsys):
    assert main(train_arguments(tmp_path / "run", "--limit-batches", "1", steps=1, batch=2)) == 0
    assert json.loads((tmp_path / "run/results.json").read_text())["images"] == 2


def test_fp16_goes_on_with_its_scale(train_arguments, tmp_path, capsys):
    for folder, steps, more in (("whole", 2, []), ("run", 1, []), ("run", 2, ["--resume"])):
        assert main(train_arguments(tmp_path / folder, "--amp", "fp16", *more, steps=steps)) == 0
    one, two = (checkpoint.find(tmp_path / name) for name in ("whole", "run"))
    assert one.extra["scaler"] == two.extra["scaler"] and one.extra["scaler"]["scale"] > 0
    assert_same_tensors(one.model, two.model)


# ----------------------------------------------------------------------------------------- what a run says and refuses


def test_a_long_first_step_is_reported(train_arguments, tmp_path, monkeypatch, caplog):
    """Compiling takes minutes, before any step is done."""
    said = threading.Event()
    monkeypatch.setattr(progress, "SILENCE", 0.01)
    monkeypatch.setattr(state, "compile_parts", lambda model: None)
    train_step = train.train_step

    def slow(*arguments):
        assert said.wait(60)
        return train_step(*arguments)

    monkeypatch.setattr(train, "train_step", slow)
    info = progress.log.info

    def note(text, *values):
        info(text, *values)
        if values and str(values[0]).startswith("training: "):
            said.set()

    monkeypatch.setattr(progress.log, "info", note)
    assert main(train_arguments(tmp_path / "run", "--compile", steps=1)) == 0
    text = (tmp_path / "run/log.txt").read_text()
    assert re.search(r"training: 0 of 1 steps after \d+ s \(the first step compiles\)", text)


def test_images_without_boxes_and_skipped_annotations(scenes_root, train_arguments, tmp_path, capsys):
    root = tmp_path / "scenes"
    shutil.copytree(scenes_root, root)

    def change(table):
        table["annotations"] = [a for a in table["annotations"] if a["image_id"] > 3]
        table["annotations"][0]["bbox"] = [5, 5, 0, 9]
        table["annotations"][1]["bbox"] = [500, 5, 9, 9]
        table["annotations"][2]["iscrowd"] = 1

    edit(root, "train", change)
    assert main(train_arguments(tmp_path / "run", data=root, steps=4, batch=1)) == 0
    log = (tmp_path / "run/log.txt").read_text()
    assert "8 images (3 without boxes)" in log
    assert "skipped: 1 iscrowd, 1 outside the image, 1 zero area" in log
    assert all(torch.isfinite(t).all() for t in checkpoint.find(tmp_path / "run").model.values())


def test_loss_that_is_not_finite(train_arguments, refused, tmp_path):
    more = ["train.lr=1e38", "train.optimizer=sgd", "train.clip_norm=0", "train.checkpoint_every=1"]
    refused(train_arguments(tmp_path / "run", *more, steps=9), "training", "the loss at step", "lower train.lr")
    assert checkpoint.exists(tmp_path / "run")


def test_train_raises_input_errors_itself(trained, tmp_path):
    config = checkpoint.find(trained).config
    config.data.root = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no such folder"):
        train.train(config, tmp_path / "run", CPU, progress=False)
