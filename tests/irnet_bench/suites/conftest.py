"""Fixtures of the suites' tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """These networks are tiny; the operators are those that irnet chooses."""
    monkeypatch.delenv("IRNET_IMPL", raising=False)


@pytest.fixture
def graphs(monkeypatch) -> list[int]:
    """torch.compile as it is, but for the compiler: a graph runs as it was traced, and is counted."""
    found, real = [], torch.compile

    def backend(graph, inputs):
        found.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda *a, **options: real(*a, backend=backend, **options))
    return found
