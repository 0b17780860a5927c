"""References compute in float32, whatever PyTorch's switches say, and leave the switches as they were."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch import backends

from irnet_kernels.dispatch import _exactly
from irnet_kernels.numerics import float32_reductions, full_float32

PLACES = [
    *itertools.product((backends.cudnn, backends.mkldnn), ("conv", "rnn")),
    *itertools.product((backends.cuda, backends.mkldnn), ("matmul",)),
]
SWITCHES = {
    "none": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "legacy cuBLAS": lambda: setattr(backends.cuda.matmul, "allow_tf32", True),
    "legacy cuDNN": lambda: setattr(backends.cudnn, "allow_tf32", False),
    "new": lambda: setattr(backends, "fp32_precision", "tf32"),
    "benchmark": lambda: setattr(backends.cudnn, "benchmark", True),
}


def new_switches() -> list[str]:
    return [getattr(part, op).fp32_precision for part, op in PLACES]


def old_switches() -> list:
    """What the old switches say, or that PyTorch refuses to tell."""
    said = []
    for read in (
        torch.get_float32_matmul_precision,
        lambda: backends.cuda.matmul.allow_tf32,
        lambda: backends.cudnn.allow_tf32,
    ):
        try:
            said.append(read())
        except RuntimeError as error:
            said.append(str(error).partition(",")[0])
    return [*said, backends.cudnn.benchmark, backends.cudnn.deterministic]


@pytest.fixture(autouse=True)
def switches_of_a_fresh_process():
    """PyTorch's switches are global: what a test turns is turned back by hand, not by what is tested."""
    before, old = new_switches(), (backends.cudnn.benchmark, backends.cudnn.deterministic)
    everywhere, precision = backends.fp32_precision, torch.get_float32_matmul_precision()
    yield
    backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision(precision)
    backends.fp32_precision = everywhere
    backends.cudnn.benchmark, backends.cudnn.deterministic = old
    for (part, op), value in zip(PLACES, before, strict=True):
        getattr(part, op).fp32_precision = value


@pytest.mark.parametrize("name", SWITCHES)
def test_references_round_nothing_and_leave_every_switch(name):
    SWITCHES[name]()
    before = new_switches(), old_switches()
    seen = {}

    def reference(x):
        seen["new"], seen["matmul"] = new_switches(), backends.cuda.matmul.allow_tf32  # readable: no contradiction
        seen["cudnn"] = backends.cudnn.benchmark, backends.cudnn.deterministic
        return x

    _exactly(reference)(torch.ones(1))
    assert seen == {"new": ["ieee"] * len(PLACES), "matmul": False, "cudnn": (False, True)}
    assert (new_switches(), old_switches()) == before


def test_switches_come_back_after_an_error():
    torch.set_float32_matmul_precision("high")
    before = new_switches(), old_switches()
    with pytest.raises(KeyError), full_float32():
        assert backends.cudnn.benchmark and not backends.cudnn.deterministic
        raise KeyError
    assert (new_switches(), old_switches()) == before


@pytest.mark.parametrize("first", ["none", "tf32"])
def test_what_was_inherited_goes_on_to_follow_the_switch_for_all(first):
    backends.fp32_precision = first
    _exactly(lambda x: x)(torch.ones(1))
    backends.fp32_precision = "ieee"
    assert backends.cuda.matmul.fp32_precision == backends.mkldnn.matmul.fp32_precision == "ieee"


def test_switches_that_may_not_be_set_do_not_matter():
    """After torch.backends.disable_global_flags(), which cannot be undone: in a process of its own."""
    code = """
import torch
from irnet_kernels.dispatch import _exactly
torch.backends.disable_global_flags()
_exactly(lambda x: x)(torch.ones(1))
assert torch.backends.mkldnn.matmul.fp32_precision == "none"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("said", [(True, True), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize("name", ["allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"])
def test_partial_sums_are_float32_within_and_as_before_after(name, said):
    matmul = backends.cuda.matmul
    before = getattr(matmul, name), getattr(matmul, f"{name}_split_k")
    setattr(matmul, name, said)
    try:
        with pytest.raises(KeyError), float32_reductions():
            assert (getattr(matmul, name), getattr(matmul, f"{name}_split_k")) == (False, said[1])
            raise KeyError
        assert (getattr(matmul, name), getattr(matmul, f"{name}_split_k")) == said
    finally:
        setattr(matmul, name, before)
