"""The first thing to run on a new GPU, here on a CPU: what it tells of right, wrong and dying implementations."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from irnet_bench import smoke

ROOT = Path(__file__).resolve().parents[2]
# The start of a name says which operator's implementations a case has.
CASES = """
import os, time
import torch
import irnet_kernels
from irnet_bench.case import Implementation, Work, case

def work(s, call):
    names = irnet_kernels.available()["crop_resize"]["cpu"]
    own = {name: Implementation(call if name != "reference" else torch.sin) for name in names}
    return Work([s.normal(s.size)], own)

@case("kernels", cpu={"size": 100}, gate={})
def crop_resize_right(s):
    return work(s, torch.sin)

@case("kernels", cpu={"size": 100}, gate={})
def crop_resize_wrong(s):
    return work(s, lambda x: x.sin() + 1e-3)

@case("kernels", cpu={"size": 100}, gate={})
def crop_resize_dying(s):
    return work(s, lambda x: os._exit(3))

@case("kernels", cpu={"size": 100}, gate={})
def crop_resize_endless(s):
    return work(s, lambda x: time.sleep(60))
"""
pytestmark = pytest.mark.skipif(
    not smoke.compiled_implementations("crop_resize", "cpu"), reason="no compiled kernels: the extension is not built"
)


@pytest.fixture
def words(tmp_path):
    """The command line for one of the cases."""
    path = tmp_path / "smoke_cases.py"
    path.write_text(CASES)

    def line(name: str) -> list[str]:
        options = ["--device", "cpu", "--seconds", "0", "--jobs", "2", "--dtype", "float32", "--cases", str(path)]
        return [*options, "--filter", f"crop_resize_{name}"]

    return line


def rows(out: str) -> list[str]:
    """The lines of the table at the end."""
    return out[out.index("implementation ") :].splitlines()[1:]


def test_a_right_implementation_has_errors_and_times(words, capsys):
    assert smoke.main(words("right")) == 0
    forward, step = (row.split() for row in rows(capsys.readouterr().out))
    assert forward[:4] == ["crop_resize_right", "cpp", "float32", "forward"] and step[3] == "step"
    assert all(0 <= float(error) <= float(budget) and float(ms) > 0 for *_, error, budget, ms in (forward, step))


def test_a_wrong_one_is_told_and_has_no_time(words, capsys):
    assert smoke.main(words("wrong")) == 1
    out = rows(capsys.readouterr().out)
    assert "OVER BUDGET" in out[0] and "nan" in out[0] and out[-1].endswith("FAILED over budget")


def test_one_that_dies_is_told(words, capsys):
    assert smoke.main(words("dying")) == 1
    assert rows(capsys.readouterr().out)[0].split()[:6] == ["crop_resize_dying", "cpp", "FAILED", "exit", "code", "3:"]


def test_an_interrupt_leaves_what_is_known(words, tmp_path):
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}:{ROOT / 'benchmarks'}"}
    command = [sys.executable, "-m", "irnet_bench.smoke", *words("")]
    with open(tmp_path / "out", "w+") as out:
        process = subprocess.Popen(command, env=env, stdout=out, text=True, start_new_session=True)
        end = time.monotonic() + 120
        while "crop_resize_right cpp dtype=float32 mode=step" not in (tmp_path / "out").read_text():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(20) == 1
    told = (tmp_path / "out").read_text()
    assert "interrupted" in told and "crop_resize_right cpp" in "\n".join(rows(told))
    assert any(row.startswith("crop_resize_endless cpp") for row in rows(told)), "what did not end is told, too"


def test_the_operator_of_a_case_is_the_longest_that_its_name_begins_with(monkeypatch):
    available = {"propagate": {"cpu": ["cpp", "reference"]}, "propagate_regions": {"cpu": ["triton", "reference"]}}
    monkeypatch.setattr(smoke.irnet_kernels, "available", lambda: available)
    assert smoke.compiled_implementations("propagate_sparse", "cpu") == ["cpp"]
    assert smoke.compiled_implementations("propagate_regions", "cpu") == ["triton"]
    assert smoke.compiled_implementations("another", "cpu") == []
