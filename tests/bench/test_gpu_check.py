"""The command that checks everything on a GPU: its limits, and what it says of a step. No GPU is needed here."""

import importlib.util
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "benchmarks/gpu_check.py")
gpu_check = importlib.util.module_from_spec(spec)
sys.modules["gpu_check"] = gpu_check  # its dataclass looks itself up
spec.loader.exec_module(gpu_check)


def test_the_limits_add_up_to_less_than_eight_minutes():
    assert sum(step.seconds for step in gpu_check.steps("cuda", Path("r.jsonl"))) <= 8 * 60 - 5


def test_the_extension_is_built_for_this_gpu_alone():
    step = gpu_check.steps("cuda", Path("r.jsonl"), "9.0")[0]
    assert step.name == "build"
    assert step.env == {"TORCH_CUDA_ARCH_LIST": "9.0", "FORCE_CUDA": "1", "IRNET_REQUIRE_EXT": "1"}


def test_every_file_that_a_step_names_is_there():
    words = {word for step in gpu_check.steps("cuda", Path("r.jsonl")) for word in step.command}
    named = {word for word in words if word.startswith(("tests/", "setup.py", "benchmarks/"))}
    assert named and all((ROOT / word).exists() for word in named)


def python(code: str, seconds: float = 60.0, **others):
    return gpu_check.Step("a step", [sys.executable, "-c", code], seconds, **others)


@pytest.mark.parametrize(
    ("step", "outcome"),
    [
        (python("print('fine')"), "passed"),
        (python("print('fine'); raise SystemExit(3)"), "FAILED (exit code 3)"),
        (python("raise SystemExit(1)", absent="needs a GPU"), "skipped: needs a GPU"),
    ],
)
def test_a_step_is_told_by_its_exit_code(tmp_path, step, outcome):
    log = tmp_path / "log"
    assert gpu_check.run(step, log)[0] == outcome
    if not step.absent:
        assert "fine" in log.read_text()


def test_a_step_has_its_environment_and_its_log_says_so(tmp_path):
    step = python("import os; print('cases', os.environ['IRNET_FUZZ'])", env={"IRNET_FUZZ": "30"})
    assert gpu_check.run(step, tmp_path / "log")[0] == "passed"
    first, last = (tmp_path / "log").read_text().splitlines()
    assert first.startswith("IRNET_FUZZ=30 ") and last == "cases 30"


def test_a_step_that_takes_too_long_is_ended_with_all_its_processes(tmp_path):
    code = "import subprocess; subprocess.run(['sleep', '30'])"
    start = time.monotonic()
    outcome, seconds = gpu_check.run(python(code, 0.5), tmp_path / "log")
    assert outcome.startswith("FAILED (longer than") and seconds < 10 and time.monotonic() - start < 10
