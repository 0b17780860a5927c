"""Cases of the kernels suite as tests build and compare them."""

import pytest
import torch

from irnet_bench.case import Case, Implementation, Setup, Work
from irnet_bench.suites import kernels

CASES = {case.name: case for case in vars(kernels).values() if isinstance(case, Case)}

each_case = pytest.mark.parametrize("name", CASES)


def work(name: str, dtype: torch.dtype = torch.float64, kind: str = "gate", **changes: int) -> Work:
    """A case at its gate shape, with some numbers of it changed."""
    return CASES[name].build(Setup(CASES[name].shapes[kind] | changes, dtype, torch.device("cpu")))


def result_and_gradients(built: Work, implementation: Implementation) -> list[torch.Tensor]:
    inputs = [leaf.detach().requires_grad_() for leaf in built.inputs]
    out = implementation.call(*inputs)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


def assert_same_function(built: Work, name: str, relative: float = 1e-10) -> None:
    """In float64, result and gradients, relative to the largest value of each."""
    if built.implementations[name].call is None:
        pytest.skip(f"{name}: {built.implementations[name].missing}")
    truth = result_and_gradients(built, built.implementations["reference"])
    for i, (got, true) in enumerate(zip(result_and_gradients(built, built.implementations[name]), truth, strict=True)):
        assert got.dtype == torch.float64
        error, scale = (got - true).abs().max(), true.abs().max()
        assert error <= relative * max(1.0, scale), f"{name}: {'gradient' if i else 'result'} {i} is off by {error:.2e}"
