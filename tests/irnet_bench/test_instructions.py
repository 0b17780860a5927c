"""Instructions counted by callgrind: a slower kernel has more, and what cannot be counted has a reason."""

import os
import time
from pathlib import Path

import pytest

from irnet_bench import instructions
from irnet_bench.case import Job, modules
from irnet_kernels.aot.tools import ToolUnavailable

TOY = Path(__file__).parent / "toy/toy_cases.py"
SIZE = 1 << 18
VARIANTS = f"""
from irnet_bench.case import Setup, Work, case, modules

toy = modules([{str(TOY)!r}])[-1]

@case("kernels", cpu={{"n": {SIZE}}})
def variants(s: Setup) -> Work:
    work = toy.scale_add.build(s)
    for damage in ("", "slower"):
        work.implementations[damage or "sound"] = toy.implementation(toy.cpp_kernel, damage)
    return work
"""

FAILING = """#!/bin/sh
if [ "$1" = --version ]; then echo valgrind-1.2; else echo gone >&2; exit 3; fi
"""


ENDLESS = """#!/bin/sh
echo $$ > {}
exec sleep 1000
"""


@pytest.fixture(scope="module")
def counted(tmp_path_factory) -> dict[tuple[str, str], int]:
    """Instructions by (implementation, mode), of one process."""
    path = tmp_path_factory.mktemp("cases") / "variants.py"
    path.write_text(VARIANTS)
    jobs = [Job("variants", name, mode) for name in ("sound", "slower") for mode in ("forward", "step")]
    try:
        modules([str(TOY)])[-1].cpp_kernel("")
        found = instructions.count(jobs, [str(path)])
    except ToolUnavailable as reason:
        pytest.skip(str(reason))
    assert list(found) == jobs
    return {(job.implementation, job.mode): number for job, number in found.items()}


def test_slower_kernel_executes_more_instructions(counted):
    assert counted["slower", "forward"] >= 1.15 * counted["sound", "forward"]
    # A step's backward is PyTorch's own and the same for both: what is added is what the forward pass adds.
    added = counted["slower", "step"] - counted["sound", "step"]
    assert added == pytest.approx(counted["slower", "forward"] - counted["sound", "forward"], rel=0.05)


def test_counts_are_of_the_order_of_the_arithmetic(counted):
    """Built for any x86-64 or aarch64, the kernel stores four numbers at once; one at a time would be five instructions
    each. Python and PyTorch's dispatch come on top."""
    assert SIZE / 4 < counted["sound", "forward"] < 5 * SIZE
    assert counted["sound", "step"] > counted["sound", "forward"]


def test_without_valgrind_there_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolUnavailable, match="valgrind"):
        instructions.count([Job("crop_resize", "reference")])


def test_a_failure_under_valgrind_is_told(monkeypatch, tmp_path):
    for name in ("valgrind", "callgrind_control"):
        (tmp_path / name).write_text(FAILING)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    try:
        assert instructions.valgrind_version() == "valgrind 1.2"
    except ToolUnavailable as reason:
        pytest.skip(str(reason))
    with pytest.raises(RuntimeError, match="ended with 3:\ngone"):
        instructions.count([Job("crop_resize", "reference")])


def test_counting_that_nobody_waits_for_ends(monkeypatch, tmp_path):
    written = tmp_path / "pid"
    (tmp_path / "valgrind").write_text(ENDLESS.format(written))
    (tmp_path / "valgrind").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(instructions, "valgrind_version", lambda: "valgrind 1.2")  # whatever this PyTorch supports
    end = time.monotonic() + 60
    with instructions.counting([Job("crop_resize", "reference")]):
        while not (written.exists() and written.read_text()):
            assert time.monotonic() < end
    with pytest.raises(ProcessLookupError):
        os.kill(int(written.read_text()), 0)


def test_the_counting_process_sees_the_same_environment_wherever_it_is_started(monkeypatch):
    before = instructions._environment()
    monkeypatch.setenv("SOME_TERMINAL", "1")
    assert instructions._environment() == before
    monkeypatch.setenv("IRNET_TOY_DAMAGE", "slower")
    assert instructions._environment() == before | {"IRNET_TOY_DAMAGE": "slower"}
