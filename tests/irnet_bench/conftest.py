"""Fixtures of the harness's tests."""

import functools

import pytest
import torch

from irnet_bench import machine


@pytest.fixture
def cpu() -> torch.device:
    return torch.device("cpu")


@pytest.fixture
def quick_rates(monkeypatch):
    """The ceilings of the machine, from small copies and products: for tests that only need some."""
    monkeypatch.setattr(machine, "copy_rate", functools.partial(machine.copy_rate, mebibytes=1))
    monkeypatch.setattr(machine, "matmul_rate", functools.partial(machine.matmul_rate, side=64))
