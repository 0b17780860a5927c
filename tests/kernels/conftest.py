"""Fixtures of the operator tests."""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(one_thread):
    """The problems here are tiny: threads only slow them. Tests about threads set their own number."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What has "cuda" among its parameters needs a GPU: `-m gpu` takes all of that and nothing else.

    What every operator owes comes first and the fuzzers last, for where the time of a GPU ends before the tests do.
    """
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if any(isinstance(value, str) and value == "cuda" for value in parameters):
            item.add_marker(pytest.mark.gpu)
    items.sort(key=lambda item: ("test_contract" not in item.nodeid, "fuzz" in item.nodeid))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A kernel that leaves its process without a GPU would fail all tests after it: a worker of pytest-xdist ends then,
    and is replaced by another."""
    if report.failed and "gpu" in report.keywords and "PYTEST_XDIST_WORKER" in os.environ:
        try:
            torch.cuda.synchronize()
        except torch.AcceleratorError:
            os._exit(3)
