"""Fixtures of the harness's tests."""

import dataclasses
import functools

import pytest
import torch

from irnet_bench import machine, tables
from irnet_bench.report import page
from tests.irnet_bench.made_up import CPU, GPU, plausible


@pytest.fixture
def cpu() -> torch.device:
    return torch.device("cpu")


@pytest.fixture
def quick_rates(monkeypatch):
    """The ceilings of the machine, from small copies and products: for tests that only need some."""
    monkeypatch.setattr(machine, "copy_rate", functools.partial(machine.copy_rate, mebibytes=1))
    monkeypatch.setattr(machine, "matmul_rate", functools.partial(machine.matmul_rate, side=64))


@pytest.fixture(scope="module")
def both() -> list[tables.Device]:
    """A CPU, and a GPU measured from a modified tree."""
    modified = GPU | {"dirty": True}
    return tables.devices(plausible(CPU), [dataclasses.replace(r, machine=modified) for r in plausible(GPU)])


@pytest.fixture(scope="module")
def text(both) -> str:
    """The page of both devices."""
    return page(both)
