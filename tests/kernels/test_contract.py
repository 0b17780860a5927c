"""What every operator owes, in every implementation: gradients, compile, autocast, layouts, determinism, memory."""

import pytest
import torch

import irnet_kernels
from irnet_kernels.testing import bits_equal
from tests.kernels.helpers import (
    CASES,
    Case,
    assert_like_reference,
    each_case,
    each_definition,
    each_dtype,
    evaluate,
)

ROI = ("crop_resize", "paste_mean")
MAPS = (*ROI, "conv_gru")
# What an operator's gradient calls, where that is no operator of its own.
GRADIENTS = {
    "segment_matmul": ("segment_matmul", "segment_outer"),
    "segment_outer": ("segment_matmul", "segment_matmul"),
}
LINEAR = (*ROI, *GRADIENTS)  # in what is differentiated: as often as one likes


def strided(t: torch.Tensor) -> torch.Tensor:
    """The same values, with a gap after every element."""
    return torch.stack([t, torch.full_like(t, torch.nan)], dim=-1)[..., 0]


def transposed(t: torch.Tensor) -> torch.Tensor:
    """The same values, the last two axes swapped in memory."""
    return t.mT.contiguous().mT if t.dim() >= 2 else t


def channels_last(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


LAYOUTS = (torch.Tensor.contiguous, channels_last, strided, transposed)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)


def calls(case: Case, impl: str, device: str, dtype: torch.dtype):
    """All operators of the library that a forward and a backward pass call, with their arguments."""
    seen = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "irnet":
                seen.append((func, args))
            return func(*args, **(kwargs or {}))

    inputs = case.inputs(dtype, device)
    with Record():
        case.call(impl, *inputs).sum().backward()
    return seen


def test_every_operator_has_a_case():
    assert {op for op, _ in CASES.values()} == set(irnet_kernels.available())


@each_case
@each_dtype
@each_layout
def test_result_and_gradients_keep_the_budget(make, impl, device, dtype, layout):
    assert_like_reference(make, impl, device, dtype, layout)


@each_case
def test_gradcheck(make, impl, device):
    case = make(device, small=True)
    assert torch.autograd.gradcheck(lambda *t: case.call(impl, *t), case.inputs(torch.float64, device))


@each_case
def test_second_gradient_is_right_or_refused(make, impl, device):
    case = make(device, small=True)
    inputs = case.inputs(torch.float64, device)
    if case.op in LINEAR:
        assert torch.autograd.gradgradcheck(lambda *t: case.call(impl, *t), inputs)
        return
    grads = torch.autograd.grad(case.call(impl, *inputs).square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match=rf"irnet::{case.op}_backward .*cannot be differentiated again"):
        sum(g.sum() for g in grads).backward()


@each_case
def test_opcheck(make, impl, device):
    """Schema, fake, autograd and compiled forms of the operator and of its gradient.

    In bfloat16, so that a fake that says float32 is found out.
    """
    case = make(device)
    seen = calls(case, impl, device, torch.bfloat16)
    gradients = GRADIENTS.get(case.op, (f"{case.op}_backward",))
    assert [func.__name__ for func, _ in seen] == [f"{name}.{impl}" for name in (case.op, *gradients)]
    (forward, arguments), *backward = seen

    def fresh(value, differentiable):
        if isinstance(value, list | tuple):
            return [fresh(v, differentiable) for v in value]
        if not isinstance(value, torch.Tensor):
            return value
        return value.detach().clone().requires_grad_(differentiable and value.requires_grad)

    torch.library.opcheck(forward, fresh(arguments, True))
    for gradient, gradient_arguments in backward:
        gradient_arguments = fresh(gradient_arguments, False)
        gradient_arguments[0].requires_grad_(case.op in LINEAR)
        torch.library.opcheck(gradient, gradient_arguments)


@each_case
@pytest.mark.parametrize("amp", [False, True], ids=["plain", "autocast"])
def test_compiles_without_a_break(make, impl, device, amp):
    case = make(device)
    torch._dynamo.reset()

    def call(*tensors):
        with torch.autocast(device, torch.bfloat16, enabled=amp):
            return case.call(impl, *tensors)

    eager = evaluate(call, case.inputs(torch.float32, device))
    compiled = evaluate(torch.compile(call, fullgraph=True, backend="aot_eager"), case.inputs(torch.float32, device))
    for a, b in zip(eager, compiled, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@each_case
def test_autocast_dtypes(make, impl, device):
    """Matrix products take autocast's dtype, as PyTorch's own; the ROI operators keep their map's. Gradients follow."""
    case = make(device)
    inputs = case.inputs(torch.float32, device)
    if case.op == "paste_mean":
        inputs[1] = inputs[1].detach().bfloat16().requires_grad_()  # patches as a convolution leaves them
    with torch.autocast(device, torch.bfloat16):
        out = case.call(impl, *inputs)
    assert out.dtype == (torch.float32 if case.op in ROI else torch.bfloat16)
    for leaf, grad in zip(inputs, torch.autograd.grad(out.float().sum(), inputs), strict=True):
        assert grad.dtype == leaf.dtype
        assert grad.isfinite().all()


@each_case
@each_layout
def test_output_layout(make, impl, device, layout):
    case, dtype = make(device), torch.bfloat16
    seen = calls(case, impl, device, dtype)
    out = case.call(impl, *case.inputs(dtype, device, layout))
    assert out.dtype == dtype
    if case.op in MAPS:
        assert out.is_contiguous(memory_format=torch.channels_last)
        gradient = seen[1][0](*seen[1][1])
        for g in (gradient,) if isinstance(gradient, torch.Tensor) else gradient[:2]:
            assert g.is_contiguous(memory_format=torch.channels_last)
    else:
        assert out.is_contiguous()


@each_case
def test_same_bits_twice(make, impl, device):
    case = make(device)
    first, second = (evaluate(lambda *t: case.call(impl, *t), case.inputs(torch.float32, device)) for _ in range(2))
    assert all(map(bits_equal, first, second))


@each_case
def test_every_element_is_written(make, impl, device):
    """Uninitialised memory is filled with NaN here; none may reach a result or a gradient."""
    case = make(device)
    clean = evaluate(lambda *t: case.call(impl, *t), case.inputs(torch.float32, device))
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(1).isnan()
        poisoned = evaluate(lambda *t: case.call(impl, *t), case.inputs(torch.float32, device))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(bits_equal, clean, poisoned))


@each_case
def test_gradient_of_some_inputs_only(make, impl, device):
    case = make(device)
    inputs = case.inputs(torch.float32, device)
    wanted = evaluate(lambda *t: case.call(impl, *t), inputs)[1:]
    for index, leaf in enumerate(inputs):
        alone = [t.detach() for t in inputs]
        alone[index] = leaf
        (got,) = evaluate(lambda *t, a=alone, i=index: case.call(impl, *a[:i], *t, *a[i + 1 :]), [leaf])[1:]
        assert bits_equal(got, wanted[index])


@each_case
def test_autocast_leaves_float64_alone(make, impl, device):
    case = make(device)
    wanted = case.call(impl, *case.inputs(torch.float64, device))
    with torch.autocast(device, torch.bfloat16):
        assert bits_equal(case.call(impl, *case.inputs(torch.float64, device)), wanted)


@each_definition
def test_meta_tensors_get_shapes(make, device):
    """The fake functions serve plain meta tensors too: planning memory needs no data."""
    case = make("meta")
    real = make(device).call("reference", *make(device).inputs(torch.bfloat16, device))
    fake = case.call("reference", *case.inputs(torch.bfloat16, "meta"))
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())
