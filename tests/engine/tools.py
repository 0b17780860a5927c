"""What the tests of runs share: what a run has logged, comparisons of runs, edited annotations, deaths of a process."""

import json
from pathlib import Path

import torch

from irnet.engine import checkpoint


def lines(run: Path) -> list[dict]:
    """What training logged, without the evaluations."""
    return [line for line in logged(run) if "metrics" not in line]


def logged(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses_of(run: Path) -> list[dict]:
    """What the run logged, but for speed and memory."""
    varying = ("images_per_s", "regions_per_s", "peak_memory")
    return [{k: v for k, v in line.items() if k not in varying} for line in logged(run)]


def assert_same_tensors(one: dict, two: dict):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def assert_same_run(run: Path, expected: Path):
    """Bit-identical weights and moments, the same metrics, every logged step once."""
    for prefer in (checkpoint.LAST, checkpoint.BEST):
        a, b = (checkpoint.load(folder / "checkpoints" / prefer) for folder in (run, expected))
        assert a.step == b.step and a.extra["best"] == b.extra["best"]
        assert_same_tensors(a.model, b.model)
        assert_same_tensors(a.optimizer, b.optimizer)
    for name in ("results.json", "per_class.csv", "confusion.csv"):
        assert (run / name).read_text() == (expected / name).read_text()
    assert losses_of(run) == losses_of(expected)
    assert [line["step"] for line in lines(run)] == list(range(1, 8))
    stray = [p.name for p in (run / "checkpoints").iterdir() if p.suffix != ".safetensors"]
    assert all(name.endswith(".tmp") for name in stray), stray


def edit(root: Path, split: str, change) -> None:
    """Change the annotations of a split of a data set by a function of the whole table."""
    path = root / f"annotations/instances_{split}.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


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

LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"  # writing beyond it fails: EFBIG
