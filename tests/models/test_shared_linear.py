"""A weight that several uses share: the gradients are those of F.linear, whatever is asked of the graph."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from irnet.models import shared_linear as shared_linear_module
from irnet.models.shared_linear import share, shared_linear


@pytest.fixture
def parts():
    """Two layers with which outputs come back as inputs, inputs [3, 5], and what is differentiated."""
    torch.manual_seed(0)
    layer, back = nn.Linear(5, 4).double(), nn.Linear(4, 5).double()
    x = torch.randn(3, 5, dtype=torch.double, requires_grad=True)
    return layer, back, x, [layer.weight, layer.bias, x, back.weight]


def roll_out(linear, back, x, uses=3):
    for _ in range(uses - 1):
        x = back(linear(x).relu())
    return (linear(x) ** 2).sum()


def shared(layer, back, x, **options):
    weight = share(layer)
    return roll_out(lambda rows: shared_linear(rows, weight), back, x, **options)


def assert_close(found, wanted):
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("uses", [1, 2, 4])
@pytest.mark.parametrize("enough", [3, 6, 512])
def test_gradients_are_those_of_linear(parts, uses, enough, monkeypatch):
    """Whether the rows of one use are enough for a product, those of two, or none are."""
    monkeypatch.setattr(shared_linear_module, "ENOUGH", enough)
    layer, back, x, leaves = parts
    leaves = leaves if uses > 1 else leaves[:3]
    wanted = torch.autograd.grad(roll_out(layer, back, x, uses), leaves)
    assert_close(torch.autograd.grad(shared(layer, back, x, uses=uses), leaves), wanted)


def test_the_weight_has_one_gradient_product(parts):
    layer, back, x, _ = parts
    loss = shared(layer, back, x)
    with torch.profiler.profile(record_shapes=True) as profile:
        loss.backward()
    products = [e for e in profile.events() if e.name == "aten::mm" and e.input_shapes[0][0] == 4]
    assert [e.input_shapes for e in products] == [[[4, 9], [9, 5]]]


def test_a_backward_pass_that_stops_before_the_weight_leaves_nothing_behind(parts):
    layer, back, x, leaves = parts
    wanted = torch.autograd.grad(roll_out(layer, back, x), leaves)
    weight = share(layer)
    loss = roll_out(lambda rows: shared_linear(rows, weight), back, x)
    for _ in range(3):
        assert_close(torch.autograd.grad(loss, [x], retain_graph=True), wanted[2:3])
    assert len(weight.gradients) == 1
    assert_close(torch.autograd.grad(loss, leaves, retain_graph=True), wanted)
    assert not weight.gradients
    assert_close(torch.autograd.grad(loss, leaves), wanted)


def test_uses_of_which_some_have_no_gradient(parts):
    layer, _, x, _ = parts
    weight = share(layer)
    first, _unused = shared_linear(x, weight), shared_linear(2 * x, weight)
    assert_close(torch.autograd.grad(first.sum(), [layer.weight]), torch.autograd.grad(layer(x).sum(), [layer.weight]))


def test_uses_beside_others(parts):
    """The gradient of what else uses the same weight is added."""
    layer, _, x, _ = parts
    weight = share(layer)
    found = torch.autograd.grad(shared_linear(x, weight).sum() + weight.weight.square().sum(), [layer.weight])
    assert_close(found, torch.autograd.grad(layer(x).sum() + layer.weight.square().sum(), [layer.weight]))


def test_checkpointed_uses(parts):
    layer, back, x, leaves = parts
    weight = share(layer)
    linear = lambda rows: checkpoint(shared_linear, rows, weight, use_reentrant=False)  # noqa: E731
    found = torch.autograd.grad(roll_out(linear, back, x), leaves)
    assert_close(found, torch.autograd.grad(roll_out(layer, back, x), leaves))


@pytest.mark.parametrize("rows", [0, 3])
def test_autocast_computes_in_its_dtype(rows):
    layer, x = nn.Linear(5, 4), torch.randn(rows, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = shared_linear(x, share(layer))
        assert out.dtype == torch.bfloat16 and out.equal(F.linear(x, layer.weight, layer.bias))
    out.float().sum().backward()
    assert layer.weight.grad.dtype == x.grad.dtype == torch.float32


@pytest.mark.parametrize("frozen", [False, True])
def test_without_a_gradient_it_is_linear(parts, frozen):
    layer, _, x, _ = parts
    layer.weight.requires_grad_(not frozen)
    with torch.set_grad_enabled(frozen):
        out = shared_linear(x, share(layer))
    assert out.equal(layer(x)) and out.requires_grad == frozen


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("compiled", ["share", "use", "both"])
def test_a_compiled_part_and_an_eager_one(amp, compiled):
    layer, x = nn.Linear(5, 4), torch.randn(3, 5)
    wrap = lambda function: torch.compile(function, backend="eager", fullgraph=True)  # noqa: E731
    sharing = share if compiled == "use" else wrap(share)
    using = shared_linear if compiled == "share" else wrap(shared_linear)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        weight = sharing(layer)
        (using(x, weight).float() + using(2 * x, weight).float()).sum().backward()
        found = layer.weight.grad
        layer.weight.grad = None
        (layer(x).float() + layer(2 * x).float()).sum().backward()
    # All terms are summed in float32: one rounding of the sum, or one of either use's part and one of their sum.
    eps = torch.finfo(torch.bfloat16 if amp else torch.float32).eps
    summed = 12 * torch.finfo(torch.float32).eps * 3 * x.abs().sum(0).max().item()
    torch.testing.assert_close(found, layer.weight.grad, rtol=1.5 * eps, atol=summed)


def test_a_wrong_dtype_is_refused_with_and_without_a_gradient():
    layer, x = nn.Linear(5, 4), torch.randn(3, 5, dtype=torch.double)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled), pytest.raises(RuntimeError, match="dtype"):
            shared_linear(x, share(layer))
