"""Training: killed runs go on to the same bits, what a run folder holds, options that change no result."""

import copy
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
import yaml

from irnet import config as settings
from irnet import progress
from irnet.cli import main
from irnet.data.loader import batches
from irnet.engine import checkpoint, train
from irnet.engine.build import build_model, compile_parts, open_dataset, restore_model
from irnet.errors import InputError

CPU = torch.device("cpu")
EVALS = ("train.eval_every=3",)


@pytest.fixture(autouse=True)
def global_state(one_thread):
    yield
    torch.use_deterministic_algorithms(False)


def lines(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses_of(run: Path) -> list[dict]:
    """What training logged, but for the speed."""
    return [{k: v for k, v in line.items() if not k.endswith("_per_s")} for line in lines(run)]


def assert_same_tensors(one: dict, two: dict):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def assert_same_run(found: Path, wanted: Path):
    """Bit-identical weights and moments, the same figures, every logged step once."""
    for prefer in (checkpoint.LAST, checkpoint.BEST):
        a, b = (checkpoint.load(run / "checkpoints" / prefer) for run in (found, wanted))
        assert a.step == b.step and a.extra["best"] == b.extra["best"]
        assert_same_tensors(a.model, b.model)
        assert_same_tensors(a.optimizer, b.optimizer)
    for name in ("results.json", "per_class.csv"):
        assert (found / name).read_text() == (wanted / name).read_text()
    assert losses_of(found) == losses_of(wanted)
    assert [line["step"] for line in lines(found)] == list(range(1, 8))
    stray = [p.name for p in (found / "checkpoints").iterdir() if p.suffix != ".safetensors"]
    assert all(name.endswith(".tmp") for name in stray), stray


# --------------------------------------------------------------------------------------------- killed and resumed

# Each dies by SIGKILL: half-way through the bytes of a file, and on either side of the renames that put it in place.
DIE_WRITING = """
import os, signal
real, count = os.fsync, 0
def fsync(number):
    global count
    mine = os.readlink(f"/proc/self/fd/{{number}}").endswith("/.{name}.tmp")
    count += mine
    if mine and count == {at}:
        os.ftruncate(number, os.fstat(number).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    return real(number)
os.fsync = fsync
"""
DIE_RENAMING = """
import os, signal
real, count = os.replace, 0
def replace(old, new):
    global count
    count += str(new).endswith("{name}")
    if str(new).endswith("{name}") and count == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(old, new)
os.replace = replace
"""

VARIATIONS = {
    "adamw": [],
    "sgd, accumulated": ["--grad-accum-steps", "2", "train.optimizer=sgd", "train.lr=0.05", "data.flip=true"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, train_arguments, irnet):
    """Uninterrupted runs of seven steps by variation, each made once."""
    made = {}

    def run(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("whole") / "run"
            irnet.run(train_arguments(made[name], *EVALS, *VARIATIONS[name], steps=7, batch=2))
        return made[name]

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


def test_checkpoint_knows_the_figure_of_its_own_step(train_arguments, irnet, tmp_path):
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


def test_going_on_from_the_previous_never_leaves_only_damaged_ones(trained, train_arguments, irnet, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    last = output / "checkpoints" / checkpoint.LAST
    last.write_bytes(last.read_bytes()[:-100])
    die = DIE_RENAMING.format(name="/last.safetensors", at=2)  # the first puts the previous in its place
    irnet.run(train_arguments(output, "--resume", steps=8), die, code=-signal.SIGKILL)
    assert checkpoint.find(output).step == 4


def test_both_checkpoints_damaged(trained, train_arguments, refused, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    for name in (checkpoint.LAST, checkpoint.PREVIOUS):
        (output / "checkpoints" / name).write_bytes(b"x" * 50)
    refused(train_arguments(output, "--resume", steps=6), checkpoint.PREVIOUS, "is truncated or no checkpoint")


def test_half_written_line_of_metrics_is_dropped(trained, train_arguments, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    with open(output / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "los')
    assert main(train_arguments(output, "--resume", steps=6)) == 0
    assert [line["step"] for line in lines(output)] == [1, 2, 3, 4, 5, 6]


# --------------------------------------------------------------------------------------------------- the run folder


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


def test_a_long_first_step_is_told_of(train_arguments, tmp_path, monkeypatch, caplog):
    """Compiling takes minutes, before any step is done."""
    told = threading.Event()
    monkeypatch.setattr(progress, "SILENCE", 0.01)
    monkeypatch.setattr(train, "compile_parts", lambda model: None)
    gradients = train.gradients

    def slow(*arguments):
        assert told.wait(60)
        return gradients(*arguments)

    monkeypatch.setattr(train, "gradients", slow)
    info = progress.log.info

    def note(text, *values):
        info(text, *values)
        if values and str(values[0]).startswith("training: "):
            told.set()

    monkeypatch.setattr(progress.log, "info", note)
    assert main(train_arguments(tmp_path / "run", "--compile", steps=1)) == 0
    text = (tmp_path / "run/log.txt").read_text()
    assert re.search(r"training: 0 of 1 steps after \d+ s \(the first step compiles\)", text)


def test_run_without_resume_leaves_the_run_there_alone(trained, train_arguments, refused, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    before = {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    refused(train_arguments(output), output, "already holds a run", "--resume")
    (output / "checkpoints" / checkpoint.LAST).unlink()  # as a run killed between two renames leaves it
    before.pop(output / "checkpoints" / checkpoint.LAST)
    refused(train_arguments(output), output, "already holds a run", "--resume")
    assert {p: p.read_bytes() for p in output.rglob("*") if p.is_file()} == before


def test_resume_from_another_run_does_not_overwrite_the_one_there(trained, train_arguments, refused, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    refused(train_arguments(output, "--resume", str(trained), steps=6), output, "already holds a run")
    other = tmp_path / "fork"
    assert main(train_arguments(other, "--resume", str(trained), steps=6)) == 0
    assert checkpoint.find(other).step == 6 and [line["step"] for line in lines(other)] == [5, 6]


def test_resume_takes_the_settings_of_the_run(trained, tmp_path, capsys):
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    assert main(["train", "--output-dir", str(output), "--resume", "train.steps=5"]) == 0
    assert checkpoint.find(output).config.model == checkpoint.find(trained).config.model
    assert checkpoint.find(output).step == 5
    (output / "checkpoints").rename(tmp_path / "gone")  # as a run killed before its first checkpoint leaves it
    assert main(["train", "--output-dir", str(output), "--resume", "--steps", "2"]) == 0
    assert checkpoint.find(output).config.model == checkpoint.find(trained).config.model
    assert [line["step"] for line in lines(output)] == [1, 2]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["model.hidden=16"], ["model.hidden = 8, not 16"]),
        (["--variant", "local"], ["model.variant = full, not local"]),
        (["train.optimizer=sgd"], ["train.optimizer = adamw, not sgd"]),
    ],
)
def test_resume_with_other_settings(trained, train_arguments, refused, tmp_path, more, words):
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    refused(train_arguments(output, "--resume", *more, steps=6), checkpoint.LAST, *words, "leave it as it was")
    assert_same_tensors(checkpoint.find(output).model, checkpoint.find(trained).model)
    assert losses_of(output) == losses_of(trained)


def test_resume_from_weights_alone(trained, train_arguments, refused, tmp_path):
    best = trained / "checkpoints" / checkpoint.BEST
    refused(train_arguments(tmp_path / "new", "--resume", str(best)), best, "no state of the optimiser")


def test_resume_with_other_word_vectors(trained, train_arguments, refused, tmp_path):
    from safetensors.torch import save_file

    save_file({"vectors": torch.ones(19, 3)}, tmp_path / "words.safetensors")
    more = ["--resume", str(trained), f"data.word_vectors={tmp_path / 'words.safetensors'}"]
    refused(train_arguments(tmp_path / "new", *more), checkpoint.LAST, "was made with data.word_vectors = , not")


# ------------------------------------------------------------------------------------------------------ a full disk

LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"  # writing beyond it fails: EFBIG


def test_disk_full_while_saving(trained, train_arguments, refused_process, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    size = (output / "checkpoints" / checkpoint.LAST).stat().st_size
    arguments = train_arguments(output, "--resume", steps=6)
    line = refused_process(
        arguments, checkpoint.LAST, "cannot be written (File too large)", first=LIMIT.format(size // 2)
    )
    assert "step 4 is saved" in line and "step 6 could not be saved" in line
    assert checkpoint.load(output / "checkpoints" / checkpoint.LAST).step == 4
    assert sorted(p.name for p in (output / "checkpoints").iterdir()) == sorted(
        p.name for p in (trained / "checkpoints").iterdir()
    )
    assert main(arguments) == 0 and [line["step"] for line in lines(output)] == [1, 2, 3, 4, 5, 6]


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


# --------------------------------------------------------------------------- options that change little or nothing


def one_step(config: settings.Config, model, batch) -> dict:
    """A model after one step of the optimiser on `batch`, and the step's figures."""
    model = copy.deepcopy(model)
    model.set_grad_checkpointing(config.train.grad_checkpointing)
    model.train()
    optimizer, schedule = train.make_optimizer(model, config.train)
    for group in optimizer.param_groups:
        group["lr"] = schedule(1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    figures = train.gradients(model, batch, optimizer, scaler, config, CPU)
    train.update(optimizer, scaler)
    return model.state_dict(), figures


@pytest.fixture(scope="module")
def step_parts(trained, scenes_root):
    """A config (SGD, so that a step is linear in the gradient), a model and a batch of four images."""
    saved = checkpoint.find(trained)
    config = saved.config
    config.train.optimizer, config.train.lr, config.train.clip_norm, config.train.cosine = "sgd", 0.5, 0.0, False
    data = open_dataset(config.data, "train")
    model = restore_model(config.model, len(saved.classes), saved.model)
    batch = next(batches(data, 4, seed=1, epoch=0, train=True, workers=0, short=None, long=None, flip=False))
    assert len(set(batch.ptr.diff().tolist())) > 1  # unequal numbers of regions
    return config, model, batch


@pytest.mark.parametrize("parts", [2, 4, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_accumulated_step_is_the_step(step_parts, parts, dtype, tolerance):
    config, model, batch = copy.deepcopy(step_parts)
    model, batch.images = model.to(dtype), [image.to(dtype) for image in batch.images]
    whole, figures = one_step(config, model, batch)
    config.train.grad_accum_steps = parts
    split, split_figures = one_step(config, model, batch)
    moved = max((whole[n] - t).abs().max().item() for n, t in model.state_dict().items() if t.is_floating_point())
    assert moved > 1e-3
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], rtol=tolerance, atol=tolerance)
    assert split_figures == pytest.approx(figures, rel=tolerance)


def test_grad_checkpointing_gives_the_same_step(step_parts):
    config, model, batch = copy.deepcopy(step_parts)
    plain, figures = one_step(config, model, batch)
    config.train.grad_checkpointing = True
    checkpointed, same = one_step(config, model, batch)
    assert figures == same
    assert_same_tensors(plain, checkpointed)


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


def test_bf16_changes_the_arithmetic_and_not_much(step_parts):
    config, model, batch = copy.deepcopy(step_parts)
    _, exact = one_step(config, model, batch)
    config.train.amp = "bf16"
    _, rounded = one_step(config, model, batch)
    assert rounded != exact
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=2**-8)


def test_limit_batches_limits_evaluation(train_arguments, tmp_path, capsys):
    assert main(train_arguments(tmp_path / "run", "--limit-batches", "1", steps=1, batch=2)) == 0
    assert json.loads((tmp_path / "run/results.json").read_text())["images"] == 2


def test_fp16_goes_on_with_its_scale(train_arguments, tmp_path, capsys):
    for folder, steps, more in (("whole", 2, []), ("run", 1, []), ("run", 2, ["--resume"])):
        assert main(train_arguments(tmp_path / folder, "--amp", "fp16", *more, steps=steps)) == 0
    one, two = (checkpoint.find(tmp_path / name) for name in ("whole", "run"))
    assert one.extra["scaler"] == two.extra["scaler"] and one.extra["scaler"]["scale"] > 0
    assert_same_tensors(one.model, two.model)


def test_compiled_model_is_the_model(step_parts):
    config, model, batch = copy.deepcopy(step_parts)
    _, figures = one_step(config, model, batch)
    names = list(model.state_dict())
    calls = []

    def backend(graph, inputs):
        calls.append(len(inputs))
        return graph.forward

    torch._dynamo.reset()
    real = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda *a, **k: real(*a, backend=backend, **k))
        compile_parts(model)
        assert list(model.state_dict()) == names
        model.train()
        optimizer, _ = train.make_optimizer(model, config.train)
        compiled = train.gradients(model, batch, optimizer, torch.amp.GradScaler("cpu", enabled=False), config, CPU)
    assert len(calls) >= 4  # both modules' reading and writing
    assert compiled == pytest.approx(figures, rel=1e-5)


# -------------------------------------------------------------------------------------------------------------- data


def annotations(root: Path, split: str, change) -> None:
    path = root / f"annotations/instances_{split}.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def test_images_without_boxes_and_skipped_annotations(scenes_root, train_arguments, tmp_path, capsys):
    root = tmp_path / "scenes"
    shutil.copytree(scenes_root, root)

    def change(table):
        table["annotations"] = [a for a in table["annotations"] if a["image_id"] > 3]
        table["annotations"][0]["bbox"] = [5, 5, 0, 9]
        table["annotations"][1]["bbox"] = [500, 5, 9, 9]
        table["annotations"][2]["iscrowd"] = 1

    annotations(root, "train", change)
    assert main(train_arguments(tmp_path / "run", data=root, steps=4, batch=1)) == 0
    log = (tmp_path / "run/log.txt").read_text()
    assert "8 images (3 without boxes)" in log
    assert "skipped: 1 iscrowd, 1 outside the image, 1 zero area" in log
    assert all(torch.isfinite(t).all() for t in checkpoint.find(tmp_path / "run").model.values())


@pytest.mark.parametrize("split", ["train", "val"])
def test_split_without_any_box_is_refused_before_training(split, scenes_root, train_arguments, refused, tmp_path):
    root = tmp_path / "scenes"
    shutil.copytree(scenes_root, root)
    annotations(root, split, lambda table: [a.update(iscrowd=1) for a in table["annotations"]])
    refused(train_arguments(tmp_path / "run", data=root), f"instances_{split}.json", "hold no region", "iscrowd")
    assert not checkpoint.exists(tmp_path / "run")


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("damage", ["garbage", "truncated"])
def test_unreadable_image_met_in_training(workers, damage, scenes_root, train_arguments, irnet, tmp_path):
    root = tmp_path / "scenes"
    shutil.copytree(scenes_root, root)
    arguments = train_arguments(
        tmp_path / "run", f"train.workers={workers}", "train.checkpoint_every=1", data=root, batch=2
    )
    # The image that the third step meets first: two steps are done by then, and saved.
    config = settings.small()
    config.data.root = str(root)
    order = list(
        batches(
            open_dataset(config.data, "train"),
            2,
            seed=0,
            epoch=0,
            train=True,
            workers=0,
            short=None,
            long=None,
            flip=False,
        )
    )
    bad = root / "train" / order[2].names[0]
    bad = bad if bad.exists() else next(root.rglob(f"*train/{order[2].names[0]}"))
    bad.write_bytes(b"not an image" if damage == "garbage" else bad.read_bytes()[:2000])
    process = irnet.start(arguments)
    assert process.wait() == 2, process.err
    message = process.err.splitlines()[-1]
    assert message.startswith(f"irnet: {bad}: not a readable image") and "leave it out; step 2 is saved" in message
    assert "Traceback" not in process.err
    assert checkpoint.find(tmp_path / "run").step == 2


def test_loss_that_is_not_finite(train_arguments, refused, tmp_path):
    more = ["train.lr=1e38", "train.optimizer=sgd", "train.clip_norm=0", "train.checkpoint_every=1"]
    refused(train_arguments(tmp_path / "run", *more, steps=9), "training", "the loss at step", "lower train.lr")
    assert checkpoint.exists(tmp_path / "run")


def test_fresh_model_depends_on_the_seed_alone(trained):
    config = checkpoint.find(trained).config
    data = open_dataset(config.data, "train")
    torch.manual_seed(5)
    one = build_model(config, data).state_dict()
    torch.manual_seed(6)
    state = torch.get_rng_state()
    assert_same_tensors(one, build_model(config, data).state_dict())
    assert torch.equal(state, torch.get_rng_state())
    config.train.seed += 1
    assert not torch.equal(one["classifier.weight"], build_model(config, data).state_dict()["classifier.weight"])


def test_train_raises_input_errors_itself(trained, tmp_path):
    config = checkpoint.find(trained).config
    config.data.root = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no such folder"):
        train.train(config, tmp_path / "run", CPU, progress=False)
