"""What a machine cannot give is told from a fault in the program, whose traceback must not be lost."""

import errno
import re
import sys
import tomllib

import pytest
import torch

from irnet.errors import REQUIRED, InputError, explain
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("error", "where", "words"),
    [
        (MemoryError(), "memory", "no more is known"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), "memory", "CUDA out of memory"),
        (RuntimeError("first\nDefaultCPUAllocator: can't allocate memory: 9 bytes\nlast"), "memory", "(DefaultCPU"),
        (RuntimeError("Storage size calculation overflowed with sizes=[2, 3]"), "memory", "overflowed"),
        (
            RuntimeError("[1] Caught RuntimeError in DataLoader worker process 0.\nstd::bad_alloc"),
            "memory",
            "bad_alloc",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory", "Cannot allocate memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "--workers", "is killed by signal"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "--workers", "exited unexpectedly"),
        (OSError(errno.EMFILE, "Too many open files"), "--workers", "Too many open files"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "--workers", "temporarily unavailable"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_machine_cannot_give(error, where, words):
    told = explain(error)
    assert told.where == where and words in told.trouble and "\n" not in str(told)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape '[2, 3]' is invalid for input of size 7"),
        RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: a fault"),
        OSError(errno.EIO, "Input/output error"),
        ValueError("out of memory"),
        KeyError("a"),
        ModuleNotFoundError("No module named 'irnet.colour'", name="irnet.colour"),
        ModuleNotFoundError("No module named 'torch.colour'", name="torch.colour"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_faults_of_the_program_keep_their_traceback(error):
    assert explain(error) is None


def test_input_errors_are_themselves():
    error = InputError("x", "is bad", "mend it")
    assert explain(error) is error
    assert "a smaller -b" in str(explain(MemoryError())) and str(explain(MemoryError(), "less")).endswith("less")


def test_every_required_package_is_told_where_it_is_absent():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    assert set(REQUIRED.values()) == names - {"triton"}  # without which irnet works
    for module, package in REQUIRED.items():
        told = explain(ModuleNotFoundError(f"No module named {module!r}", name=module))
        assert str(told) == f"{package}: is not installed; pip install {package}"


def test_all_required_packages_that_are_absent_are_told_at_once(monkeypatch):
    for module in ("torch", "PIL"):
        monkeypatch.setitem(sys.modules, module, None)
    told = explain(ModuleNotFoundError("No module named 'PIL'", name="PIL"))
    assert str(told) == "Pillow, torch: are not installed; pip install Pillow torch"
