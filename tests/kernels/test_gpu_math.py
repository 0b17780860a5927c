"""Triton kernels under the arithmetic of a GPU, of which tests that interpret them exactly see nothing: what kernels
share is as good as it says, and every operator keeps its budget."""

from pathlib import Path

import numpy as np
import pytest
import torch

from irnet_kernels.aot import interpreter
from tests.kernels import test_graph_triton, test_gru_triton, test_roi_triton, test_segment_triton
from tests.kernels.gpu_math import gpu_math
from tests.kernels.triton_modules import load, needs_interpreter
from tests.tools import here

SHARED = Path(__file__).with_name("shared_kernels.py")
SIZE = 2**16
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")


@pytest.fixture
def gpu():
    """The worst that a GPU may do, from a seed."""
    with gpu_math():
        yield


def shared(name: str, a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """A function of irnet_kernels.triton_shared, of all elements."""
    module = here(interpreter.load, str(SHARED), interpret=True)
    assert len(a) % SIZE == 0
    b, out = torch.ones_like(a) if b is None else b, torch.empty_like(a)
    module.shared_kernel[(len(a) // SIZE,)](a, b, out, name, SIZE)
    return out


def ulps(got: torch.Tensor, exact: torch.Tensor) -> float:
    unit = np.spacing(exact.float().abs().numpy()).astype(np.float64)
    return float(((got.double() - exact).abs().numpy() / unit).max())


def mantissas(low: int, high: int, seed: int) -> torch.Tensor:
    """float32 from 2^low to 2^high, of all magnitudes alike."""
    generator = torch.Generator().manual_seed(seed)
    return 2 ** (low + (high - low) * torch.rand(4 * SIZE, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize(("low", "high"), [(-86.6, 88.7), (-1, 1), (-1e-3, 1e-3)])
def test_exp_is_within_an_ulp(gpu, low, high):
    x = torch.linspace(low, high, 8 * SIZE)
    assert ulps(shared("exp", x), x.double().exp()) < 0.9


def test_exp_where_it_ends(gpu):
    inf, nan = float("inf"), float("nan")
    x = torch.zeros(SIZE)
    x[:9] = torch.tensor([-inf, -1e30, -87.4, -86.64, 88.72, 88.73, 1e30, inf, nan])
    got = shared("exp", x)[:10]
    assert got[:3].tolist() == [0, 0, 0] and got[5:8].tolist() == [inf, inf, inf] and got[8].isnan() and got[9] == 1
    assert ulps(got[3:5], x[3:5].double().exp()) < 1


@pytest.mark.parametrize("name", ["divide", "quotient", "reciprocal", "square_root"])
def test_division_and_roots_are_rounded_as_ieee_says(gpu, name):
    """`/` and `tl.sqrt` are not; without the branches of div.rn and sqrt.rn one in thousands may be."""
    a, b = mantissas(-40, 40, 0).float(), mantissas(-40, 40, 1).float()
    exact = {
        "divide": a.double() / b.double(),
        "quotient": a.double() / b.double(),
        "reciprocal": 1 / a.double(),
        "square_root": a.double().sqrt(),
    }[name]
    wrong = int((shared(name, a, b) != exact.float()).sum())
    assert wrong <= (0 if name == "divide" else len(a) // 2000), wrong


def test_the_emulation_errs_as_far_as_a_gpu(gpu):
    """What the kernels do not use, and why: it is what they would lose."""
    a, b = mantissas(-40, 40, 0).float().numpy(), mantissas(-40, 40, 1).float().numpy()
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    builder = InterpreterBuilder()
    x, y = TensorHandle(a, tl.float32), TensorHandle(b, tl.float32)
    exact = torch.from_numpy(a).double() / torch.from_numpy(b).double()
    assert 1.5 < ulps(torch.from_numpy(builder.create_fdiv(x, y).data), exact) <= 2
    exact = torch.from_numpy(a).double().sqrt()
    assert 0.8 < ulps(torch.from_numpy(builder.create_sqrt(x).data), exact) <= 1
    exponent = -np.abs(np.linspace(0, 80, SIZE, dtype=np.float32))
    got = torch.from_numpy(builder.create_exp(TensorHandle(exponent, tl.float32)).data)
    assert ulps(got, torch.from_numpy(exponent).double().exp()) > 20


@each_dtype
@needs_interpreter
def test_regions_keep_the_budget(gpu, dtype):
    scene = test_graph_triton.Regions((70, 0, 1, 6), channels=7, outputs=5)
    test_graph_triton.check(on_cpu("graph"), scene, dtype)


@needs_interpreter
def test_odd_boxes_keep_the_budget(gpu):
    test_graph_triton.test_odd_boxes(on_cpu("graph"))


@each_dtype
@needs_interpreter
def test_propagate_keeps_the_budget(gpu, dtype):
    scene = test_graph_triton.Typed(5, [14, 0, 9], channels=7, outputs=5, images=2)
    test_graph_triton.check(on_cpu("graph"), scene, dtype)


@each_dtype
@needs_interpreter
def test_roi_operators_keep_the_budget(gpu, dtype):
    test_roi_triton.test_kernels_keep_the_budget(on_cpu("roi"), dtype)


@each_dtype
@pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
@needs_interpreter
def test_conv_gru_keeps_the_budget(gpu, dtype, wide):
    test_gru_triton.check(on_cpu("gru"), test_gru_triton.Scene(2, 17, 17 if wide else 1, 3), dtype)


@each_dtype
@needs_interpreter
def test_segments_keep_the_budget(gpu, dtype):
    test_segment_triton.test_kernels_keep_the_budget(on_cpu("segment"), dtype)


def on_cpu(op: str):
    module = load(op, interpret=True)
    module.device = "cpu"
    return module


def test_copies_of_shared_functions_are_of_their_kind():
    """An interpreted copy leaves no interpreted function behind that a compiled one would import, nor the reverse."""
    for interpret in (True, False, True):
        module = load("graph", interpret)
        assert type(module.divide) is type(module.propagate_kernel)
        assert module.dot.fn.__globals__["INTERPRETED"].value is interpret
