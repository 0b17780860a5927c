"""How runs end before their time: signals, a second run, dead workers, too little memory; one line, nothing lost."""

import contextlib
import dataclasses
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from irnet import config as settings
from irnet.cli import main
from irnet.commands import info
from irnet.data.loader import batches
from irnet.data.registry import open_dataset
from irnet.engine import checkpoint, train
from irnet.engine import step as step_module
from irnet.errors import InputError
from irnet.interrupts import Stopped
from tests.engine.tools import LIMIT, lines

LONG = 100_000  # steps
NEVER = f"train.checkpoint_every={LONG}"
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def logged(run: Path) -> int:
    """The last step in metrics.jsonl, 0 before there is one."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def said(process, words: str) -> bool:
    return process.streams[0].exists() and words in process.out


def ended(process, code: int) -> str:
    """The last line of a process that must end with `code` and no traceback."""
    assert process.wait() == code, process.err
    assert "Traceback" not in process.err, process.err
    return process.err.splitlines()[-1]


def gone(pids: list[int], seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


# ---------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_signal_saves_the_step_and_ends_the_workers(number, train_arguments, irnet, tmp_path):
    output = tmp_path / "run"
    process = irnet.start(train_arguments(output, NEVER, "train.workers=2", steps=LONG))
    process.signal_when(lambda: logged(output) >= 3 and children(process.pid), number)
    workers = children(process.pid)
    line = ended(process, CODES[number])
    step = checkpoint.find(output).step
    assert step >= 3 and step == logged(output)
    assert line.startswith(f"irnet: {number.name}: ended after step {step}; step {step} is saved in {output}")
    assert gone(workers)
    whole = tmp_path / "whole"
    irnet.run(train_arguments(whole, NEVER, steps=LONG), STOP.format(step + 1), code=130)
    irnet.run(train_arguments(output, NEVER, "--resume", steps=LONG), STOP.format(1), code=130)
    one, two = (checkpoint.find(run) for run in (output, whole))
    assert one.step == two.step and all(one.model[name].equal(two.model[name]) for name in two.model)


def test_signal_to_the_whole_group(train_arguments, irnet, tmp_path):
    """As a terminal sends Ctrl-C: workers, which here start with every step, have it at any moment of their lives."""
    own = "import os; os.setsid()"
    for i in range(4):
        output = tmp_path / str(i)
        process = irnet.start(train_arguments(output, NEVER, "train.workers=2", steps=LONG, batch=8), own)
        process.signal_when(lambda output=output: logged(output) >= 2, 0)
        end = time.monotonic() + 0.1 * i
        while not children(process.pid) or time.monotonic() < end:
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGINT)
        assert "SIGINT: ended after step" in ended(process, 130)
        assert checkpoint.find(output).step == logged(output)


def test_signal_while_a_batch_is_waited_for_and_a_worker_dies(train_arguments, irnet, tmp_path):
    """As batch systems do, that signal every process of a job."""
    output = tmp_path / "run"
    process = irnet.start(train_arguments(output, NEVER, "train.workers=1", steps=LONG))
    process.signal_when(lambda: logged(output) >= 2 and children(process.pid), signal.SIGTERM)
    for worker in children(process.pid):
        os.kill(worker, signal.SIGTERM)
    assert "SIGTERM: ended after step" in ended(process, 143)
    assert checkpoint.find(output).step == logged(output)


SLOW_STEP = """
import time, irnet.engine.step as step
real = step.gradients
def gradients(*arguments):
    print("in a step", flush=True)
    time.sleep({seconds})
    return real(*arguments)
step.gradients = gradients
"""


def test_second_signal_ends_at_once(train_arguments, irnet, tmp_path):
    """To the whole group again: the workers have nothing to say."""
    first = "import os; os.setsid()" + SLOW_STEP.format(seconds=60)
    process = irnet.start(train_arguments(tmp_path / "run", "train.workers=2", steps=LONG, batch=1), first)
    process.signal_when(lambda: said(process, "in a step"), 0)
    workers = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # within the first second it counts as the first: timeout sends two
    time.sleep(1.5)
    assert os.path.exists(f"/proc/{process.pid}/exe"), process.err
    os.killpg(process.pid, signal.SIGINT)
    begin = time.monotonic()
    assert ended(process, 130) == "irnet: ended at once by a second SIGINT"
    assert process.err.count("irnet: ") == 1 and time.monotonic() - begin < 10
    assert workers and gone(workers)


def test_many_signals_print_no_traceback(train_arguments, irnet, tmp_path):
    """Held down, Ctrl-C meets every moment: the save, the end of the workers and of the interpreter."""
    for i in range(4):
        output = tmp_path / str(i)
        process = irnet.start(train_arguments(output, "train.workers=1", steps=LONG))
        process.signal_when(lambda output=output: logged(output) >= 1, signal.SIGINT)
        for _ in range(40):  # a process that is done waits for its parent, so the signal hits nobody else
            time.sleep(0.002 * (i + 1))
            os.kill(process.pid, signal.SIGINT)
        ended(process, 130)


def test_ignored_signals_stay_ignored(train_arguments, irnet, tmp_path):
    """As nohup wants it."""
    output = tmp_path / "run"
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = irnet.start(train_arguments(output, steps=30), ignore)
    process.signal_when(lambda: logged(output) >= 1, signal.SIGHUP)
    assert process.wait() == 0, process.err


def test_signal_during_evaluation(trained, train_arguments, irnet, tmp_path):
    output = shutil.copytree(trained, tmp_path / "run")
    slow = SLOW_STEP.replace("irnet.engine.step as step", "irnet.engine.evaluate as step")
    slow = slow.replace("gradients", "held_out").format(seconds=1).replace("in a step", "evaluates")
    process = irnet.start(train_arguments(output, "--resume", steps=5), slow)
    process.signal_when(lambda: said(process, "evaluates"), signal.SIGTERM)
    assert "SIGTERM: ended after step 5; step 5 is saved" in ended(process, 143)
    process = irnet.start(["eval", "--checkpoint", output, "-j", "0"], slow.replace("sleep(1)", "sleep(60)"))
    process.signal_when(lambda: said(process, "evaluates"), signal.SIGTERM)
    assert ended(process, 143) == "irnet: SIGTERM: ended before it was done"


def test_signal_after_the_last_step_is_obeyed(train_arguments, irnet, tmp_path):
    first = "import os, signal, irnet.engine.predict as p; p.draw = lambda *a: os.kill(os.getpid(), signal.SIGTERM)"
    process = irnet.start(train_arguments(tmp_path / "run"), first)
    assert ended(process, 143) == "irnet: SIGTERM: ended after the last step; its results are written"
    assert json.loads((tmp_path / "run/results.json").read_text())["step"] == 4


def test_handlers_are_the_callers_again_after_a_stop_in_process(monkeypatch, capsys):
    before = [signal.getsignal(number) for number in CODES]
    monkeypatch.setattr(info, "run", lambda options: os.kill(os.getpid(), signal.SIGINT))
    assert main(["info"]) == 130 and capsys.readouterr().err == "irnet: SIGINT: ended before it was done\n"
    assert [signal.getsignal(number) for number in CODES] == before


def test_a_stop_can_be_pickled():
    found = pickle.loads(pickle.dumps(Stopped(signal.SIGTERM, "ended early")))
    assert str(found) == "SIGTERM: ended early" and found.number == signal.SIGTERM


# -------------------------------------------------------------------------------------------- two runs in one folder


def test_second_run_in_a_folder_is_refused(train_arguments, irnet, refused, tmp_path):
    output = tmp_path / "run"
    process = irnet.start(train_arguments(output, "train.checkpoint_every=1", "train.workers=1", steps=LONG))
    process.signal_when(lambda: checkpoint.exists(output), 0)
    for more in ([], ["--resume"]):
        refused(train_arguments(output, *more), output, "another run is writing there")
    # Killed, it leaves no lock, though its worker may live for seconds.
    workers = []
    while not workers:
        os.kill(process.pid, signal.SIGSTOP)
        workers = children(process.pid)
        if not workers:  # between two epochs
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    try:
        step = checkpoint.find(output).step
        assert any(os.path.exists(f"/proc/{worker}") for worker in workers)
        irnet.run(train_arguments(output, "--resume", "train.workers=0", steps=step + 1))
    finally:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)


def test_a_checkpoint_that_another_run_has_replaced_since_it_was_read_is_refused(trained, train_arguments, tmp_path):
    output = shutil.copytree(trained, tmp_path / "run")
    for damaged in (False, True):
        if damaged:  # so that previous is read, which the other run renames
            last = output / "checkpoints" / checkpoint.LAST
            last.write_bytes(last.read_bytes()[:-1])
        found = checkpoint.find(output)
        assert main(train_arguments(output, "--resume", steps=5 + damaged)) == 0
        with pytest.raises(InputError, match="another run has just written there; start again with --resume"):
            train.train(found.config, output, torch.device("cpu"), found, progress=False)
        assert checkpoint.find(output).step == 5 + damaged


def test_run_is_free_after_an_end_of_any_kind(train_arguments, refused, tmp_path):
    output = tmp_path / "run"
    refused(train_arguments(output, data=tmp_path / "nowhere"), "no such folder")
    assert main(train_arguments(output, steps=1)) == 0
    assert main(train_arguments(output, "--resume", steps=2)) == 0


# ------------------------------------------------------------------------------------- what a machine cannot give


def test_killed_worker(train_arguments, irnet, tmp_path):
    output = tmp_path / "run"
    process = irnet.start(train_arguments(output, NEVER, "train.workers=2", steps=LONG))
    process.signal_when(lambda: logged(output) >= 2, 0)
    end = time.monotonic() + 60
    while "ended before" not in process.err and time.monotonic() < end:  # one hit at an epoch's end is not missed
        for worker in children(process.pid)[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        time.sleep(0.05)
    assert time.monotonic() < end
    line = ended(process, 2)
    assert line.startswith("irnet: --workers: a loader process ended before its time (DataLoader worker (pid")
    step = checkpoint.find(output).step
    assert step == logged(output) and f"take fewer with -j, or a machine with more memory; step {step} is" in line


def test_worker_killed_in_a_step_does_not_tear_it(train_arguments, irnet, tmp_path):
    """PyTorch's handler raises wherever the program is: in the midst of an optimiser's step, too."""
    output = tmp_path / "run"
    kill = """
import os, signal, irnet.engine.step as step
from pathlib import Path
real, steps = step.update, 0
def update(optimizer, scaler):
    global steps
    steps += 1
    if steps == 2:
        pid = os.getpid()
        os.kill(int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]), signal.SIGKILL)
        __import__("time").sleep(0.5)
    real(optimizer, scaler)
step.update = update
"""
    process = irnet.start(train_arguments(output, NEVER, "train.workers=1", steps=LONG, batch=1), kill)
    assert "a loader process ended before its time" in ended(process, 2)
    step = checkpoint.find(output).step
    assert step >= 2 and step == logged(output)
    # The same schedule: the learning rate follows from all the steps that are planned.
    irnet.run(train_arguments(tmp_path / "whole", NEVER, steps=LONG, batch=1), STOP.format(step), 130)
    one, two = checkpoint.find(output).model, checkpoint.find(tmp_path / "whole").model
    assert all(one[name].equal(two[name]) for name in two)


STOP = """
import os, signal, irnet.engine.step as step
real, count = step.update, 0
def update(optimizer, scaler):
    global count
    count += 1
    real(optimizer, scaler)
    if count == {}:
        os.kill(os.getpid(), signal.SIGINT)
step.update = update
"""

SEND_FAILS = """
import irnet.data.workers as workers
class Fails:
    @staticmethod
    def dumps(content):
        raise {error}
    loads = workers.ForkingPickler.loads
workers.ForkingPickler = Fails
"""


@pytest.mark.parametrize(
    "error",
    ['RuntimeError("unable to allocate shared memory(shm)")', 'OSError(24, "Too many open files")', "MemoryError()"],
)
def test_worker_that_cannot_send(error, train_arguments, refused_process, tmp_path):
    arguments = train_arguments(tmp_path / "run", "train.workers=2")
    line = refused_process(
        arguments, "--workers", "cannot send its batch", "-j 0", first=SEND_FAILS.format(error=error)
    )
    assert re.search(r"\((unable to allocate|\[Errno 24\] Too many|MemoryError)", line)


MEMORY = """
import irnet.engine.step as step
real, count = step.{name}, 0
def {name}(*arguments):
    global count
    count += 1
    if count == 3:
        raise {error}
    return real(*arguments)
step.{name} = {name}
"""
ALLOCATOR = 'RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can\'t allocate memory: 9 bytes")'


@pytest.mark.parametrize(
    "error",
    [
        ALLOCATOR,
        "MemoryError()",
        'RuntimeError("std::bad_alloc")',
        "__import__('torch').OutOfMemoryError('CUDA out of memory. Tried to allocate 9 GiB')",
        'OSError(12, "Cannot allocate memory")',
    ],
)
def test_too_little_memory(error, train_arguments, refused_process, tmp_path):
    arguments = train_arguments(tmp_path / "run", NEVER, steps=9)
    words = [
        "memory",
        "there is too little",
        "give --memory, which plans; or lower -b, raise --grad-accum-steps",
        "step 2 is saved",
    ]
    refused_process(arguments, *words, first=MEMORY.format(name="gradients", error=error))
    assert checkpoint.find(tmp_path / "run").step == 2


@pytest.mark.parametrize("clip_norm", [0, 1], ids=["in the backward pass", "behind it"])
def test_memory_that_ends_within_the_optimiser_saves_no_torn_weights(
    clip_norm, train_arguments, refused_process, tmp_path
):
    """The third step's update is done in part; the last whole step is not saved, since its weights are gone."""
    first = MEMORY.format(name="update" if clip_norm else "gradients", error="(real(*arguments), MemoryError())[1]")
    arguments = train_arguments(tmp_path / "run", NEVER, f"train.clip_norm={clip_norm}", steps=9)
    lost = "no step is saved (step 2 is lost: its weights were being changed)"
    refused_process(arguments, "memory", "there is too little", lost, first=first)
    assert not checkpoint.exists(tmp_path / "run")


def test_little_memory_for_real(train_arguments, refused_process, tmp_path):
    """A limit on the address space, as `ulimit -v` sets it."""
    limit = """
import resource
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + 2**28,) * 2)
"""
    arguments = train_arguments(tmp_path / "run", "data.short_side=3000", "data.long_side=3000")
    refused_process(arguments, "memory", "there is too little", first=limit)


def test_memory_for_other_commands(trained, refused_process):
    first = MEMORY.replace("irnet.engine.step", "irnet.engine.evaluate").replace("count == 3", "True")
    arguments = ["eval", "--checkpoint", trained, "-j", "0"]
    refused_process(arguments, "memory", "smaller -b", first=first.format(name="held_out", error=ALLOCATOR))


def test_no_compiler(train_arguments, tmp_path):
    root = Path(checkpoint.__file__).parents[2]
    env = os.environ | {"PYTHONPATH": f"{root}:{root / 'kernels'}", "OMP_NUM_THREADS": "1", "PATH": str(tmp_path)}
    env |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    env.pop("CXX", None)
    command = [sys.executable, "-m", "irnet.cli", *train_arguments(tmp_path / "run", "--compile")]
    found = subprocess.run(command, env=env, capture_output=True, text=True)
    line = found.stderr.splitlines()[-1]
    assert found.returncode == 2 and "Traceback" not in found.stderr, found.stderr
    assert line.startswith("irnet: --compile: cannot compile the model (")
    assert "install a C++ compiler (g++) or name one in CXX, or leave out --compile; no step is saved" in line


# ------------------------------------------------------------------------------------------------------- divergence

DIVERGES = ["train.optimizer=sgd", "train.clip_norm=0", "train.cosine=false"]


def test_divergence_met_by_the_evaluation(train_arguments, refused, tmp_path):
    more = [*DIVERGES, "train.lr=1e20", "train.eval_every=1", "train.checkpoint_every=1"]
    refused(train_arguments(tmp_path / "run", *more, steps=8), "after step", "not finite", "lower train.lr")
    assert not checkpoint.exists(tmp_path / "run")


@pytest.mark.parametrize("rate", ["1e10", "3e38"])
def test_divergence_at_the_last_step(rate, train_arguments, refused, tmp_path):
    refused(train_arguments(tmp_path / "run", *DIVERGES, f"train.lr={rate}", steps=1), "after step 1", "not finite")
    if checkpoint.exists(tmp_path / "run"):  # its weights are finite, its scores are not
        refused(["eval", "--checkpoint", tmp_path / "run", "-j", "0"], "not finite", "lower train.lr")


@pytest.mark.parametrize(
    ("weight", "more"),
    [("backbone.stem.0.weight", []), ("backbone.stem.1.weight", ["--json"]), ("backbone.patch.weight", [])],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_predict_refuses_scores_that_are_not_finite(weight, more, trained, scenes_root, refused, tmp_path):
    saved = checkpoint.find(trained)  # huge weights are finite, their scores are not
    state = saved.model | {weight: torch.full_like(saved.model[weight], 3e38)}
    path = tmp_path / "run/checkpoints" / checkpoint.LAST
    checkpoint.save(path, dataclasses.replace(saved, model=state))
    image, boxes = next(scenes_root.rglob("*val/000001.png")), tmp_path / "boxes.json"
    boxes.write_text("[[5, 5, 90, 95]]")
    words = ["predict", image, "--boxes", boxes, "--checkpoint", tmp_path / "run", "--output", tmp_path / "p.png"]
    refused([*words, *more], "prediction: the model's scores for 000001.png are not finite", "lower train.lr")
    assert not (tmp_path / "p.png").exists()


def test_diverged_weights_are_never_saved(trained, train_arguments, refused, monkeypatch, tmp_path):
    output = shutil.copytree(trained, tmp_path / "run")
    real = step_module.update

    def update(optimizer, scaler):
        real(optimizer, scaler)
        optimizer.param_groups[0]["params"][0].data.view(-1)[0] = float("nan")

    monkeypatch.setattr(step_module, "update", update)
    line = refused(train_arguments(output, "--resume", steps=6), "training", "lower train.lr", "step 4 is saved")
    assert re.search(r"the loss at step 6 is nan|after step 6 the weights are not finite", line)
    assert checkpoint.load(output / "checkpoints" / checkpoint.LAST).step == 4


# ---------------------------------------------------------------------------------------- a full disk, a damaged image


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
    config.data.root, config.train.batch_size = str(root), 2
    order = list(batches(open_dataset(config.data, "train"), config, train=True))
    bad = root / "train" / order[2].names[0]
    bad = bad if bad.exists() else next(root.rglob(f"*train/{order[2].names[0]}"))
    bad.write_bytes(b"not an image" if damage == "garbage" else bad.read_bytes()[:2000])
    process = irnet.start(arguments)
    assert process.wait() == 2, process.err
    message = process.err.splitlines()[-1]
    assert message.startswith(f"irnet: {bad}: not a readable image") and "leave it out; step 2 is saved" in message
    assert "Traceback" not in process.err
    assert checkpoint.find(tmp_path / "run").step == 2
