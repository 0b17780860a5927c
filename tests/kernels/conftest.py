"""Fixtures of the operator tests."""

import os

import pytest
import torch

MARKS = {"cuda": pytest.mark.gpu, "cpp": pytest.mark.cpp, "triton": pytest.mark.triton}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by the implementation that it runs: the parameter's, or that of its file (test_roi_cpp.py).

    What has "cuda" among its parameters, as implementation or device, needs a GPU: `-m gpu` takes all of that alone.
    What every operator owes comes first and the fuzzers last, for where the time of a GPU ends before the tests do.
    """
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        named = {value for value in parameters if isinstance(value, str)}
        named |= {item.path.stem.rpartition("_")[2]} - {"cuda"}  # test_roi_cuda.py compiles kernels for the CPU
        for name, mark in MARKS.items():
            if name in named:
                item.add_marker(mark)
    items.sort(key=lambda item: ("test_contract" not in item.nodeid, "fuzz" in item.nodeid))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A kernel that leaves its process without a GPU would fail all tests after it: a worker of pytest-xdist ends then,
    and is replaced by another."""
    if report.failed and "gpu" in report.keywords and "PYTEST_XDIST_WORKER" in os.environ:
        try:
            torch.cuda.synchronize()
        except torch.AcceleratorError:
            os._exit(3)
