"""The rule by which a kernel's result is judged, in tests, benchmarks and the gate alike. Runs no kernel."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Accuracy:
    """How far a result is from the truth, how far it may be, and the truth's largest absolute value."""

    error: float
    budget: float
    scale: float

    @property
    def ok(self) -> bool:
        return self.error <= self.budget  # False for a NaN


def accuracy(got: Tensor, exact: Tensor, reference: Tensor) -> Accuracy:
    """The one rule for a result of lower precision, on every machine.

    got        the result to judge
    exact      the reference in float64, on the same (rounded) inputs
    reference  the reference in the dtype of `got`
    The error is the largest absolute one. The budget is twice the reference's own, and at least two roundings of the
    dtype at the result's scale. Raises ValueError where dtypes or shapes differ.
    """
    if got.dtype != reference.dtype or got.shape != exact.shape:
        expected = f"{reference.dtype} {list(exact.shape)}"
        raise ValueError(f"the result is {got.dtype} {list(got.shape)}, not {expected}")
    if not exact.numel():
        return Accuracy(0.0, 0.0, 0.0)
    scale = exact.abs().max().item()
    rounding = torch.finfo(got.dtype).eps / 2 * scale
    own = (reference.to(exact) - exact).abs().max().item()
    error = (got.to(exact) - exact).abs().max().item()
    return Accuracy(error, 2 * max(own, rounding), scale)


def bits_equal(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit: -0.0 is not 0.0, a NaN is itself."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.shape == b.shape and torch.equal(a.contiguous().view(whole), b.contiguous().view(whole))
