"""The comparison with the authors' program: turns, answers and table, with stand-ins for both programs."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from irnet.errors import InputError

ROOT = Path(__file__).resolve().parents[1]

STEP = "import time; from workload import serve; serve(lambda: lambda: time.sleep({seconds}) or {value})"


@pytest.fixture
def authors(monkeypatch):
    """The folder's modules, which are scripts and no package."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "authors")
    return importlib.import_module("compare")


def stand_in(seconds: float, value: str = "1.0") -> list[str]:
    lines = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks' / 'authors')!r}); "
    return [sys.executable, "-c", lines + STEP.format(seconds=seconds, value=value)]


def test_both_step_in_turn_and_the_first_step_does_not_count(authors):
    samples = authors.take_turns({"authors": stand_in(0.2), "irnet": stand_in(0.05)}, rounds=2, threads=1)
    assert [len(answers) for answers in samples.values()] == [2, 2]
    row = authors.summary(samples)
    assert row["authors s"] >= 0.2 and 0.05 <= row["irnet s"] < 0.2
    assert row["s ratio"] == row["authors s"] / row["irnet s"]
    assert row["authors CPU s"] < 0.2  # sleeping takes no processor
    assert row["MiB ratio"] == row["irnet MiB"] / row["authors MiB"]


@pytest.mark.parametrize("value", ["float('nan')", "1 / 0"])
def test_a_program_that_ends_is_named(authors, value):
    with pytest.raises(InputError, match=r"^irnet: ended with 1"):
        authors.take_turns({"irnet": stand_in(0, value)}, rounds=1, threads=1)


def test_our_step_serves():
    """irnet's side as compare.py starts it."""
    command = [sys.executable, "benchmarks/authors/ours.py", "--mode", "test", "--regions", "2", "--threads", "1"]
    answer = subprocess.run(command, input="step\n", capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert json.loads(answer)["peak_mib"] > 100
