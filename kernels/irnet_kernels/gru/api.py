"""conv_gru: schema, public function, fake and gradient. Its mathematics is in reference.py."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import dispatch
from ..checks import check, check_floats
from ..numerics import autocast, empty_map
from . import reference


class ConvGRUWeights(NamedTuple):
    """Weights of `conv_gru`: 3x3 kernels in OIHW and biases, all of one dtype and on one device.

    The gates `reset` and `update` have G = 1 or C channels. `_x` acts on the input, `_h` on the state.
    """

    new_x: Tensor  # [C, C, 3, 3]
    new_h: Tensor  # [C, C, 3, 3]
    reset_x: Tensor  # [G, C, 3, 3]
    reset_h: Tensor  # [G, C, 3, 3]
    update_x: Tensor  # [G, C, 3, 3]
    update_h: Tensor  # [G, C, 3, 3]
    new_bias: Tensor  # [C]
    reset_bias: Tensor  # [G]
    update_bias: Tensor  # [G]


def conv_gru(inputs: Tensor, state: Tensor, weights: ConvGRUWeights, *, impl: str = "auto") -> Tensor:
    """Compute the change that a convolutional GRU makes to its state on every patch: u.(n - h).

    r = sigmoid(Wxr * x + br + Whr * h), u = sigmoid(Wxu * x + bu + Whu * h), n = relu(Wxn * x + bn + Whn * (r.h)), with
    3x3 convolutions and zero padding inside the patch (Chen et al., CVPR 2018, section 3.1; the memory-side
    convolutions have no bias, as in the authors' code). `paste_mean` adds the result to the memory. Accumulates in
    float32 (float64 for float64); r.h is rounded to the dtype, as what weights are multiplied with. For the gradient n
    and the gates are kept, one patch tensor and two small ones. An infinite number may give a NaN where its neighbours'
    results are infinite; it reaches no other patch. In bfloat16 the gates may take subnormal numbers for zero.

    Args:
        inputs: x [R, C, P, P], float64, float32, bfloat16 or float16; channels_last is the fast layout.
        state: h, of the shape and dtype of `inputs`.
        weights: `ConvGRUWeights` of the same dtype. Under autocast all arguments take its dtype.
        impl: "auto", or one of "cuda", "triton", "cpp", "reference".

    Returns:
        [R, C, P, P] in channels_last; differentiable once in inputs, state and every weight.

    Raises:
        ValueError: Other shapes, dtypes or devices.
        ImplementationUnavailable: `impl` is not there.
    """
    name = "conv_gru"
    check(
        inputs.dim() == 4 and inputs.shape == state.shape and inputs.shape[2] == inputs.shape[3],
        name,
        lambda: f"inputs and state must both be [R, C, P, P], got {list(inputs.shape)} and {list(state.shape)}",
    )
    channels, gate = inputs.shape[1], weights.reset_bias.numel()
    check(gate in (1, channels), name, lambda: f"gates must have 1 or {channels} channels, got {gate}")
    for field, weight in weights._asdict().items():
        outputs = channels if field.startswith("new") else gate
        shape = [outputs] if field.endswith("bias") else [outputs, channels, 3, 3]
        check(
            list(weight.shape) == shape,
            name,
            lambda f=field, w=weight, s=shape: f"{f} must be {s}, got {list(w.shape)}",
        )
    inputs, state, *rest = autocast(inputs, state, *weights)
    check_floats(name, inputs=inputs, state=state, **dict(zip(ConvGRUWeights._fields, rest, strict=True)))
    chosen = dispatch.choose(name, impl, inputs.device.type)
    return dispatch.overload(name, chosen)(inputs, state, rest)[0]


def _save(ctx, inputs, output) -> None:
    x, h, weights = inputs
    _, new, reset, update = output
    ctx.save_for_backward(x, h, new, reset, update, *weights)
    ctx.mark_non_differentiable(new, reset, update)
    ctx.set_materialize_grads(False)


def _gradient(op, ctx, grad: Tensor | None, *unused):
    if grad is None:
        return None, None, [None] * len(ConvGRUWeights._fields)
    x, h, new, reset, update, *weights = ctx.saved_tensors
    return op("conv_gru_backward")(grad, x, h, weights, new, reset, update)


def _fake(inputs: Tensor, state: Tensor, weights: list[Tensor]):
    regions, _, *patch = inputs.shape
    gate = (regions, weights[2].shape[0], *patch)
    return tuple(empty_map(inputs, shape) for shape in (inputs.shape, inputs.shape, gate, gate))


def _fake_backward(grad, inputs, state, weights, new, reset, update):
    gradients = [torch.empty_like(w) for w in weights]
    return empty_map(inputs, inputs.shape), empty_map(state, state.shape), gradients


dispatch.define(
    "conv_gru",
    "(Tensor inputs, Tensor state, Tensor[] weights) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.conv_gru,
    fake=_fake,
    backward=_gradient,
    save=_save,
    triton=".gru.triton",
)
dispatch.define(
    "conv_gru_backward",
    "(Tensor grad, Tensor inputs, Tensor state, Tensor[] weights, Tensor new, Tensor reset, Tensor update)"
    " -> (Tensor, Tensor, Tensor[])",
    reference=reference.conv_gru_backward,
    fake=_fake_backward,
    triton=".gru.triton",
    public=False,
)
