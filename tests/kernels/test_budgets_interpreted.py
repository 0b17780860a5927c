"""Every case's budget with the Triton kernels, interpreted on the CPU, in a process that is not set to interpret.

test_contract.py runs these cases for Triton only with TRITON_INTERPRET=1, or where there is a GPU.
"""

import pytest
import torch

from irnet_kernels.dispatch import INTERPRETED
from tests.kernels.helpers import CASES, assert_like_reference, each_dtype
from tests.kernels.triton_modules import load, needs_interpreter

MODULES = {"roi": ("crop_resize", "paste_mean"), "gru": ("conv_gru",), "graph": ("propagate", "propagate_regions")}
MODULES |= {"segment": ("segment_matmul", "segment_outer")}
# NumPy's, where the interpreter computes with infinite values, which is meant.
pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1: test_contract.py runs them"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]


@pytest.fixture
def interpreted():
    """Registers a module's launchers, interpreted, as the Triton implementation for the CPU, for one test."""
    registered = torch.library.Library("irnet", "IMPL")

    def register(where: str) -> None:
        module = load(where, interpret=True)
        for op in MODULES[where]:
            for name in (op, f"{op}_backward"):
                if hasattr(module, name):  # gradients of segment_* are segment_*
                    registered.impl(f"{name}.triton", getattr(module, name), "CPU")

    yield register
    registered._destroy()


@needs_interpreter
@each_dtype
@pytest.mark.parametrize(("op", "make"), CASES.values(), ids=CASES)
def test_interpreted_kernels_keep_the_budget(interpreted, op, make, dtype):
    interpreted(next(where for where, ops in MODULES.items() if op in ops))
    assert_like_reference(make, "triton", "cpu", dtype, torch.Tensor.contiguous)


def test_every_operator_has_a_module():
    assert {op for ops in MODULES.values() for op in ops} == {op for op, _ in CASES.values()}
