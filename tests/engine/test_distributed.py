"""Several processes train as one: the same steps, the same images, checkpoints for any number, and one end for all."""

import contextlib
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

from irnet.data.loader import shared
from irnet.engine import checkpoint
from tests.engine import shared_steps
from tests.engine.groups import EVALS, failing, kill_at_random, recording, torchrun
from tests.engine.recorded import images_of
from tests.engine.tools import assert_same_run, assert_same_tensors, edit, lines

# --------------------------------------------------------------------------------------------------------- the shares


def test_shares_are_by_work():
    """The largest item alone outweighs all others: they go to the other process."""
    assert shared([1, 9, 2, 3], 2) == [[1], [0, 2, 3]]
    assert shared([5, 5, 5, 5], 3) == [[0, 3], [1], [2]]
    assert shared([4], 3) == [[0], [], []] and shared([], 2) == [[], []]


def test_no_share_exceeds_another_by_more_than_an_item():
    draw = random.Random(0)
    for _ in range(200):
        work = [draw.randint(1, 1000) for _ in range(draw.randint(1, 40))]
        processes = draw.randint(1, 9)
        shares = shared(work, processes)
        assert sorted(i for share in shares for i in share) == list(range(len(work)))
        sums = [sum(work[i] for i in share) for share in shares]
        assert max(sums) - min(sums) <= max(work)


# ----------------------------------------------------------------------------------------------------- the same steps


@pytest.mark.parametrize(
    ("variant", "train"),
    [
        ("full", {"optimizer": "adamw", "lr": 1e-3, "grad_checkpointing": True}),
        ("local", {"clip_norm": 0.5, "max_batch_pixels": 20_000}),
        ("full", {"parallel": "fsdp"}),
        ("local", {"parallel": "fsdp", "optimizer": "adamw", "lr": 1e-3, "grad_checkpointing": True, "clip_norm": 0.5}),
    ],
)
def test_weights_do_not_depend_on_the_number_of_processes(variant, train, group, tmp_path):
    """Nor on accumulation. Of four processes some have images without a region, one has no image at an epoch's end."""
    alone = train | {"parallel": "auto"}
    whole = shared_steps.steps(variant, **alone)
    start = shared_steps.model_of(shared_steps.settings(variant)).state_dict()
    assert max((whole["weights"][name] - value).abs().max() for name, value in start.items()) > 1e-3
    ways = {(1, 8): shared_steps.steps(variant, **alone, grad_accum_steps=8)}
    groups = {}
    for processes, parts in ((2, 1), (4, 1), (2, 2)):
        words = f"{variant!r}, {str(tmp_path / f'{processes}.{parts}')!r}, "
        words += repr(json.dumps(train | {"grad_accum_steps": parts}))
        first = f"from tests.engine import shared_steps; shared_steps.run({words}); raise SystemExit"
        groups[processes, parts] = group([], processes, first)
    for (processes, parts), started in groups.items():
        started.end()
        ranks = [torch.load(tmp_path / f"{processes}.{parts}.{rank}") for rank in range(processes)]
        ways[processes, parts] = ranks[0]
        for other in ranks[1:]:
            assert_same_tensors(other["weights"], ranks[0]["weights"])
        check_steps(list(zip(*(rank["steps"] for rank in ranks), strict=True)), whole["steps"])
    for way, result in ways.items():
        for name, value in whole["weights"].items():
            torch.testing.assert_close(result["weights"][name], value, rtol=1e-12, atol=1e-12, msg=f"{way} {name}")


def check_steps(found: list[tuple], whole: list) -> None:
    """Hold what `shared_steps.steps` tells of every step of several ranks against that of one process."""
    for ranks, (images, *_) in zip(found, whole, strict=True):
        assert sorted(name for names, *_ in ranks for name in names) == sorted(images)
        assert all(exchanged == gradients > 0 for _, _, exchanged, gradients in ranks)
    if len(found[0]) == 4:
        shares = [(len(names), regions) for ranks in found for names, regions, *_ in ranks]
        assert (0, 0) in shares and any(images and not regions for images, regions in shares)


# -------------------------------------------------------------------------------------------------- going on as others


def test_checkpoint_goes_on_with_another_number_of_processes(group, train_arguments, tmp_path):
    """And with other parts of a batch: the images of every step stay those of one process."""
    record = recording(tmp_path / "whole.jsonl")
    group(train_arguments(tmp_path / "whole", steps=8, batch=3), 1, record).end()
    output, record = tmp_path / "run", recording(tmp_path / "run.jsonl")
    for steps, processes, parts in ((2, 2, 1), (4, 4, 3), (5, 1, 3), (8, 2, 1)):
        words = ["--resume", "--grad-accum-steps", str(parts)] if steps > 2 else []
        group(train_arguments(output, *words, steps=steps, batch=3), processes, record).end()
    assert images_of(tmp_path / "run.jsonl") == images_of(tmp_path / "whole.jsonl")
    one, two = (checkpoint.find(tmp_path / name) for name in ("run", "whole"))
    assert one.extra["position"] == two.extra["position"] == [2, 6] and one.step == 8
    assert [line["step"] for line in lines(output)] == list(range(1, 9))


def test_torchrun_brings_a_killed_run_back(undisturbed, train_arguments, tmp_path):
    """One of two ranks is killed in the midst of a step; no image is lost or doubled, and no bit differs."""
    words = train_arguments(tmp_path / "run", *EVALS, steps=7, batch=3)
    record = tmp_path / "images.jsonl"
    done = torchrun(["-m", "tests.engine.recorded", record, "1:4", *words], 2, restarts=1)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr
    assert_same_run(tmp_path / "run", undisturbed / "run")
    assert images_of(record) == images_of(undisturbed / "images.jsonl")


def test_group_killed_at_random_moments_goes_on(undisturbed, group, train_arguments, tmp_path):
    words = train_arguments(tmp_path / "run", *EVALS, "--resume", "train.checkpoint_every=1", steps=7, batch=3)
    kill_at_random(group, words, tmp_path / "images.jsonl")
    assert_same_run(tmp_path / "run", undisturbed / "run")
    assert images_of(tmp_path / "images.jsonl") == images_of(undisturbed / "images.jsonl")


def test_three_processes_go_on_to_the_same_bits(group, train_arguments, tmp_path):
    """The order in which three gradients are added must not depend on where a run goes on."""
    group(train_arguments(tmp_path / "whole"), 3).end()
    group(train_arguments(tmp_path / "run"), 3, failing(1, 3, "os.kill(os.getpid(), signal.SIGKILL)")).end(2, -9, 2)
    group(train_arguments(tmp_path / "run", "--resume"), 3).end()
    one, two = (checkpoint.find(tmp_path / name) for name in ("run", "whole"))
    assert_same_tensors(one.model, two.model)
    assert_same_tensors(one.optimizer, two.optimizer)


# ------------------------------------------------------------------------------------------------------------- the end

SLOW_IMAGES = """
import time
from irnet.data import loader
real = loader.prepare
def prepare(*arguments):
    time.sleep(0.1)
    return real(*arguments)
loader.prepare = prepare
"""


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def pids(started) -> list[int]:
    return [process.pid for process in started.ranks]


@pytest.mark.parametrize("rank", [0, 1])
def test_one_failure_ends_all_and_is_told_once(rank, group, train_arguments, tmp_path):
    error = 'raise InputError("data/7.png", "is truncated", "restore it")'
    started = group(train_arguments(tmp_path / "run"), 3, failing(rank, 3, error))
    started.end(2)
    (line,) = started.said
    assert line.startswith(f"irnet: rank {rank}: data/7.png: is truncated; restore it")
    assert "Traceback" not in started.err and "step 2 is saved in" in started.ranks[0].err
    assert checkpoint.find(tmp_path / "run").step == 2


def test_killed_process_ends_the_others(group, train_arguments, tmp_path):
    started = group(train_arguments(tmp_path / "run"), 2, failing(1, 2, "os.kill(os.getpid(), signal.SIGKILL)"))
    started.end(2, -signal.SIGKILL)
    (line,) = started.said
    assert line.startswith("irnet: rank 0: another process of the run: has ended") and "step 1 is saved" in line


def test_signal_to_one_process_ends_all_after_the_same_step(undisturbed, group, train_arguments, tmp_path):
    output = tmp_path / "run"
    stop = "os.kill(os.getpid(), signal.SIGTERM)"
    started = group(train_arguments(output, *EVALS, steps=7, batch=3), 2, failing(1, 3, stop))
    started.end(128 + signal.SIGTERM)
    (line,) = started.said
    assert line.startswith("irnet: SIGTERM: ended after step 3; step 3 is saved")
    group(train_arguments(output, *EVALS, "--resume", steps=7, batch=3), 2).end()
    assert_same_run(output, undisturbed / "run")


@pytest.mark.parametrize("first", ["ranks", "loaders"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_signal_to_every_process_of_a_job_saves_the_step(parallel, first, group, train_arguments, tmp_path):
    """To the loaders, too, of which a step waits for batches; and to them a moment before it reaches the ranks."""
    output = tmp_path / "run"
    more = ("--parallel", parallel, "train.workers=1", "train.checkpoint_every=100000")
    patient = SLOW_IMAGES + "from irnet.engine import distributed\ndistributed.GRACE = 20.0\n"  # on a busy machine
    started = group(train_arguments(output, *more, steps=100_000, batch=3), 2, patient)
    started.ranks[0].signal_when(lambda: len(lines(output)) >= 2 and all(map(children, pids(started))), 0)
    loaders = [loader for pid in pids(started) for loader in children(pid)]
    ranks = pids(started)
    for pid in ranks + loaders if first == "ranks" else loaders + ranks:
        with contextlib.suppress(ProcessLookupError):  # a loader of an epoch that has ended meanwhile
            os.kill(pid, signal.SIGTERM)
    started.end(128 + signal.SIGTERM)
    (line,) = started.said
    step = checkpoint.find(output).step
    assert line.startswith(f"irnet: SIGTERM: ended after step {step}; step {step} is saved")
    assert step == lines(output)[-1]["step"]


@pytest.mark.parametrize("rank", [0, 1])
def test_signal_to_every_process_within_an_evaluation(rank, group, train_arguments, tmp_path):
    """One rank's loader has died and the other's has not."""
    first = f"""
import os, signal
from irnet.engine import evaluate
def held_out(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    if os.environ["RANK"] == "{rank}":
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")
    yield from real(*arguments)
real, evaluate.held_out = evaluate.held_out, held_out
"""
    started = group(train_arguments(tmp_path / "run", *EVALS, "--parallel", "fsdp"), 2, first)
    started.end(128 + signal.SIGTERM)
    (line,) = started.said
    assert line.startswith("irnet: SIGTERM: ended after step 3; step 3 is saved")


def test_rank_with_other_data_is_refused(group, train_arguments, scenes_root, tmp_path):
    other = shutil.copytree(scenes_root, tmp_path / "scenes")
    edit(other, "train", lambda table: table["annotations"].pop())
    words = [train_arguments(tmp_path / "run", data=root) for root in (scenes_root, other)]
    started = group(words, 2)
    started.end(2)
    (line,) = started.said
    assert line.startswith("irnet: rank 1: ") and "its annotations are not those of rank 0" in line


def test_memory_is_planned_for_each_process(group, train_arguments, tmp_path):
    """With plenty, a share is worked on at once and each process has all weights; where nothing fits rank 0 says so."""
    started = group(train_arguments(tmp_path / "run", "--memory", "1GiB", batch=2), 2)
    started.end()
    assert "train.grad_accum_steps=1" in started.ranks[0].err
    assert "2 processes, train.parallel=ddp" in started.ranks[0].err
    started = group(train_arguments(tmp_path / "none", "--memory", "100KiB", batch=2), 2)
    started.end(2)
    (line,) = started.said
    assert "--memory: no step on images of 160 x 160 pixels" in line


# ---------------------------------------------------------------------------------------------------------- evaluation


def assert_same_results(one: Path, two: Path) -> None:
    for name in ("results.json", "per_class.csv"):
        assert (one / name).read_text() == (two / name).read_text()


@pytest.mark.parametrize("batch", [1, 3])
def test_evaluation_is_shared_to_the_bit(batch, trained, group, irnet, tmp_path):
    """Four images in batches of one or three among three processes, of which one gets a batch more, or none."""
    words = ["eval", "--checkpoint", trained, "-b", batch, "--output-dir"]
    irnet.run([*words, tmp_path / "one"])
    started = group([*words, tmp_path / "three"], 3)
    started.end()
    assert_same_results(tmp_path / "three", tmp_path / "one")
    assert json.loads((tmp_path / "three/results.json").read_text())["images"] == 4
    assert [bool(process.out) for process in started.ranks] == [True, False, False]


def test_torchrun_evaluates_what_two_processes_trained(undisturbed, irnet, tmp_path):
    """The results are those of the training, too, and those of one process."""
    words = ["eval", "--checkpoint", undisturbed / "run", "--output-dir"]
    done = torchrun(["-m", "irnet", *words, tmp_path / "two"], 2)
    assert done.returncode == 0, done.stderr
    irnet.run([*words, tmp_path / "one"])
    for name in ("one", "two"):
        assert_same_results(tmp_path / name, undisturbed / "run")
