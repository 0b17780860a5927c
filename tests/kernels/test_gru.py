"""conv_gru against autograd through the plain formula, for both gate widths and odd sizes; refusals."""

import pytest
import torch
from torch.nn.functional import conv2d

from irnet_kernels import ConvGRUWeights, conv_gru
from tests.kernels import oracles
from tests.kernels.helpers import (
    assert_exact_with_gradients,
    assert_rounded_once,
    each_device,
    each_dtype,
    each_implementation,
    gru_weights,
    normal,
)

# regions, channels, gate channels, patch
SIZES = [
    (2, 3, 1, 7),
    (2, 3, 3, 7),
    (1, 5, 1, 1),
    (3, 1, 1, 2),
    (2, 17, 17, 3),
    (1, 16, 1, 8),
    (0, 4, 1, 7),
    (0, 4, 4, 3),
]
each_size = pytest.mark.parametrize("size", SIZES, ids=lambda s: "R{}-C{}-G{}-P{}".format(*s))


def arguments(size, dtype=torch.float64) -> list[torch.Tensor]:
    regions, channels, gate, patch = size
    shape = (regions, channels, patch, patch)
    return [t.to(dtype) for t in (normal(*shape), normal(*shape, seed=1), *gru_weights(channels, gate, seed=2))]


def run(impl, device, tensors):
    inputs, state, *weights = (t.to(device) for t in tensors)
    return conv_gru(inputs, state, ConvGRUWeights(*weights), impl=impl)


def oracle(tensors):
    inputs, state, *weights = tensors
    return oracles.conv_gru(inputs, state, weights)


@each_device
@each_size
def test_result_and_gradients_follow_the_formula(device, size):
    tensors = [t.requires_grad_() for t in arguments(size)]
    got, wanted = run("reference", device, tensors), oracle(tensors)
    assert_exact_with_gradients(got, wanted, tensors)


@each_device
@each_dtype
@each_size
def test_reference_rounds_once(device, dtype, size):
    """Every intermediate value of the forward pass stays in float32, but for r.h."""
    tensors = arguments(size, dtype)
    wanted = oracle([t.double() for t in tensors])
    if not wanted.numel():
        return
    x, h, *w = (t.double().abs() for t in tensors)
    convolved = [
        conv2d(x, w[2 * i], w[6 + i], padding=1) + conv2d(h, w[2 * i + 1], padding=1) for i in range(3)
    ]  # the magnitudes that are added up for n, r and u: `total` at most, with 18 C roundings
    total = max(c.max() for c in convolved)
    change = total + h.max()  # bounds |n - h|
    # n itself, n through r, and u (whose slopes are at most 1/4); then the difference and the product.
    scale = total + total * total / 4 + total * change / 4 + change
    terms = 18 * size[1] + 3
    # r.h is rounded to the dtype: as many float32 roundings of what the state contributes to n at most.
    operand = conv2d(h, w[1], padding=1) * (torch.finfo(dtype).eps / torch.finfo(torch.float32).eps / 2)
    assert_rounded_once(run("reference", device, tensors), wanted, terms, scale + operand / terms)


@each_implementation("conv_gru")
@each_dtype
def test_gradients_of_single_biases(impl, device, dtype):
    """Sums that may cancel, held against the sum of their magnitudes.

    Of what is added up, four factors are rounded to the dtype: pre_n, what follows from it for r.h, and r or n, u; then
    the sum is.
    """
    tensors = [t.requires_grad_() for t in arguments((3, 6, 1, 5), dtype)]
    exact = [t.detach().double().requires_grad_() for t in tensors]
    grads = torch.autograd.grad(run(impl, device, tensors).sum(), tensors[-2:])
    # The upstream gradient of the gates themselves, from an oracle whose gates are leaves.
    x, h, *w = (t.detach() for t in exact)
    r, u = ((conv2d(x, w[i], w[i // 2 + 6], padding=1) + conv2d(h, w[i + 1], padding=1)) for i in (2, 4))
    r, u = r.requires_grad_(), u.requires_grad_()
    n = (conv2d(x, w[0], w[6], padding=1) + conv2d(r.sigmoid() * h, w[1], padding=1)).relu()
    pre = torch.autograd.grad((u.sigmoid() * (n - h)).sum(), [r, u])
    parts = (conv2d(h.abs(), w[1].abs(), padding=1).sum(), (n - h).abs().sum())  # bounds of what is added up
    for got, terms, wanted in zip(grads, parts, pre, strict=True):
        bound = 5 * torch.finfo(dtype).eps / 2 * float(terms.detach()) / 4  # a sigmoid's slope is at most 1/4
        assert abs(got.double().cpu() - wanted.sum()) <= bound


@each_device
def test_reference_gradients_in_float32(device):
    size = (3, 6, 1, 5)
    tensors = [t.requires_grad_() for t in arguments(size, torch.float32)]
    exact = [t.detach().double().requires_grad_() for t in tensors]
    got = torch.autograd.grad(run("reference", device, tensors).sum(), tensors)
    for g, w in zip(got, torch.autograd.grad(oracle(exact).sum(), exact), strict=True):
        assert_rounded_once(g, w, 18 * 6 + 3 * 25, w.abs().max())  # a convolution's terms, and a sum over all patches


@each_implementation("conv_gru")
def test_closed_and_open_gates(impl, device):
    """update = 0 changes nothing; update = 1 and reset = 0 replace the state by relu of the input's convolution."""
    tensors = arguments((2, 4, 1, 3), torch.float32)
    inputs, state, *weights = tensors
    weights[2:6] = [torch.zeros_like(w) for w in weights[2:6]]
    weights[7:] = [torch.full((1,), -200.0), torch.full((1,), -200.0)]
    assert not run(impl, device, [inputs, state, *weights]).any()
    weights[8] = torch.full((1,), 200.0)
    new = conv2d(inputs.double(), weights[0].double(), weights[6].double(), padding=1).relu()
    got = run(impl, device, [inputs, state, *weights])
    assert_rounded_once(got, new - state.double(), 9 * 4 + 4, float(new.abs().max() + state.abs().max()) + 1)


@each_implementation("conv_gru")
def test_no_regions_give_zero_gradients(impl, device):
    tensors = [t.to(device).requires_grad_() for t in arguments((0, 4, 1, 7), torch.float32)]
    out = run(impl, device, tensors)
    assert out.shape == (0, 4, 7, 7)
    for leaf, gradient in zip(tensors, torch.autograd.grad(out.sum(), tensors), strict=True):
        assert gradient.shape == leaf.shape
        assert not gradient.any()


@each_implementation("conv_gru")
def test_patches_do_not_see_each_other(impl, device):
    """Zero padding lies inside the patch: another patch's NaN cannot reach this one."""
    inputs, state, *weights = arguments((3, 4, 1, 5), torch.float32)
    wanted = run(impl, device, [inputs, state, *weights])
    inputs[1], state[2] = torch.nan, torch.nan
    got = run(impl, device, [inputs, state, *weights])
    assert torch.equal(got[0], wanted[0])
    assert got[1:].isnan().all()


def changed(**fields):
    inputs, state, *weights = arguments((2, 4, 1, 5), torch.float32)
    named = {"inputs": inputs, "state": state, **dict(zip(ConvGRUWeights._fields, weights, strict=True)), **fields}
    conv_gru(named.pop("inputs"), named.pop("state"), ConvGRUWeights(**named))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inputs": torch.zeros(2, 4, 5)}, r"must both be \[R, C, P, P\], got \[2, 4, 5\]"),
        ({"state": torch.zeros(1, 4, 5, 5)}, r"must both be \[R, C, P, P\]"),
        ({"inputs": torch.zeros(2, 4, 5, 4), "state": torch.zeros(2, 4, 5, 4)}, r"must both be \[R, C, P, P\]"),
        ({"reset_bias": torch.zeros(2)}, "gates must have 1 or 4 channels, got 2"),
        ({"reset_bias": torch.tensor(0.0)}, r"reset_bias must be \[1\], got \[\]"),
        ({"update_bias": torch.zeros(4)}, r"update_bias must be \[1\], got \[4\]"),
        ({"new_x": torch.zeros(4, 4, 1, 1)}, r"new_x must be \[4, 4, 3, 3\], got \[4, 4, 1, 1\]"),
        ({"reset_h": torch.zeros(4, 4, 3, 3)}, r"reset_h must be \[1, 4, 3, 3\], got"),
        ({"new_bias": torch.zeros(1)}, r"new_bias must be \[4\], got \[1\]"),
        ({"new_h": torch.zeros(4, 4, 3, 3).bfloat16()}, "wants one floating dtype, got .*new_h torch.bfloat16"),
        ({"state": torch.zeros(2, 4, 5, 5, device="meta")}, "wants one device, got .*state on meta"),
    ],
)
def test_wrong_arguments_are_named(fields, message):
    with pytest.raises(ValueError, match="conv_gru: .*" + message):
        changed(**fields)
