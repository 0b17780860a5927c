"""The rule by which results are judged: errors and budgets by hand, and bits."""

import math

import pytest
import torch

from irnet_kernels.testing import accuracy, bits_equal

EXACT = torch.tensor([1.0, -4.0, 0.5], dtype=torch.float64)


def test_the_budget_is_twice_the_references_own_error_or_two_roundings():
    reference = EXACT.float() + torch.tensor([0.0, 0.25, 0.0])
    judged = accuracy(EXACT.float() + 0.5, EXACT, reference)
    assert (judged.error, judged.budget, judged.scale) == (0.5, 0.5, 4.0) and judged.ok
    least = accuracy(EXACT.bfloat16(), EXACT, EXACT.bfloat16())
    assert (least.error, least.budget) == (0.0, torch.finfo(torch.bfloat16).eps * 4.0)
    assert not accuracy(EXACT.float() + 0.5, EXACT, EXACT.float()).ok


def test_a_nan_is_within_no_budget():
    judged = accuracy(torch.tensor([1.0, math.nan, 0.5]), EXACT, EXACT.float())
    assert math.isnan(judged.error) and not judged.ok


def test_an_empty_result_is_right():
    empty = torch.empty(0, 3)
    assert accuracy(empty, empty.double(), empty).ok


@pytest.mark.parametrize("got", [EXACT.half(), EXACT.float()[:2]], ids=["dtype", "shape"])
def test_another_dtype_or_shape_is_refused(got):
    with pytest.raises(ValueError, match="the result is"):
        accuracy(got, EXACT, EXACT.float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_bits(dtype):
    x = torch.arange(6).reshape(2, 3).to(dtype)
    assert bits_equal(x, x.clone()) and bits_equal(x.T, x.clone().T)
    assert not bits_equal(x, x.flip(1)) and not bits_equal(x, x[:1])
    if dtype.is_floating_point:
        zero, nan = torch.zeros(1, dtype=dtype), torch.full((1,), math.nan, dtype=dtype)
        assert bits_equal(nan, nan.clone()) and not bits_equal(zero, -zero)
