"""What is special about the C++ conv_gru: instruction sets, 16-bit numbers, layouts of kernels, threads, memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import irnet_kernels
from irnet_kernels import ConvGRUWeights, conv_gru, counts
from irnet_kernels.testing import bits_equal
from tests.kernels.helpers import assert_within_budget, cpu_path, each_dtype, evaluate, gru_weights, normal
from tests.kernels.test_roi_cpp import CAPABILITIES

if "cpp" not in irnet_kernels.available()["conv_gru"]["cpu"]:
    pytest.skip(f"no C++ kernels: {irnet_kernels.extension.native_reason()}", allow_module_level=True)

channels_last = {"memory_format": torch.channels_last}


def multiplies_bfloat16() -> bool:
    processor = Path("/proc/cpuinfo")
    has = processor.exists() and "avx512_bf16" in processor.read_text()
    return has and torch.backends.cpu.get_cpu_capability() == "AVX512"


def leaves(regions: int, channels: int, gate: int, patch: int, dtype: torch.dtype, layout=channels_last):
    """Inputs, state and the nine weights, differentiable; kernels in `layout`."""
    shape = (regions, channels, patch, patch)
    patches = [normal(*shape, seed=seed).to(dtype).contiguous(**channels_last) for seed in (0, 1)]
    weights = [w.to(dtype).contiguous(**layout) if w.dim() == 4 else w.to(dtype) for w in gru_weights(channels, gate)]
    return [t.requires_grad_() for t in (*patches, *weights)]


def call(impl: str):
    return lambda inputs, state, *weights: conv_gru(inputs, state, ConvGRUWeights(*weights), impl=impl)


def assert_like_reference(*size, layout=channels_last):
    """By the rule of irnet_kernels.testing, but for the biases of gates of one channel (see helpers._gru)."""
    tensors = leaves(*size, layout=layout)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    found = [evaluate(call("cpp"), tensors), evaluate(call("reference"), exact), evaluate(call("reference"), tensors)]
    count = len(tensors) + 1 if size[2] > 1 else len(tensors) - 1
    for index, (got, wanted, reference) in enumerate(list(zip(*found, strict=True))[:count]):
        assert_within_budget(got, wanted, reference, f"gradient {index - 1}" if index else "result")


@each_dtype
@pytest.mark.parametrize("gate", [1, 37], ids=["narrow", "wide"])
@pytest.mark.parametrize("regions", [1, 5])
def test_channels_that_fill_no_vector(regions, gate, dtype):
    assert_like_reference(regions, 37, gate, 7, dtype)


@each_dtype
@pytest.mark.parametrize("layout", [channels_last, {}], ids=["channels_last", "contiguous"])
def test_gradients_of_kernels_have_their_layout(layout, dtype):
    assert_like_reference(3, 64, 1, 6, dtype, layout=layout)
    tensors = leaves(3, 64, 1, 6, dtype, layout)
    for leaf, gradient in zip(tensors, torch.autograd.grad(call("cpp")(*tensors).sum(), tensors), strict=True):
        assert gradient.stride() == leaf.stride()


@each_dtype
@pytest.mark.parametrize("patch", [1, 2, 9])
def test_any_size_of_patches(patch, dtype):
    assert_like_reference(40, 32, 1, patch, dtype)


@each_dtype
@pytest.mark.parametrize("patch", [5, 7, 8])
def test_many_channels(patch, dtype):
    """In bfloat16 one rounding too many before the relu of sums of so many products, and gradients are out of budget.
    In float32 these sizes are convolved with fewer products than taps."""
    assert_like_reference(768 // patch**2 + 1, 256, 1, patch, dtype)


@pytest.mark.parametrize("onednn", [False, True], ids=["own", "onednn"])
@pytest.mark.parametrize(
    "size", [(5, 37, 1, 7), (40, 32, 1, 2), (40, 32, 1, 9), (16, 256, 1, 7)], ids=["odd", "2x2", "9x9", "channels"]
)
def test_products_of_gates_in_bfloat16(size, onednn):
    """Whoever makes them, and oneDNN does where it is chosen: the products with 18 columns are a call of its own."""
    with cpu_path("gates_by_onednn", onednn):
        assert_like_reference(*size, torch.bfloat16)
        tensors = [t.detach() for t in leaves(*size, torch.bfloat16)]
        with torch.profiler.profile() as profile:
            call("cpp")(*tensors)
    named = {event.name for event in profile.events()}
    if multiplies_bfloat16():  # else all is computed in float32
        assert ("aten::mm" in named) == onednn


def test_fewer_products_take_any_strides():
    tensors = [t.detach() for t in leaves(16, 256, 1, 7, torch.float32)]
    gaps = [torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0] for t in tensors]
    assert not gaps[8].is_contiguous() and not gaps[0].is_contiguous(**channels_last)
    for layout in (gaps, [t.contiguous() for t in tensors]):
        inputs = [t.requires_grad_() for t in layout]
        wanted = evaluate(call("cpp"), [t.detach().requires_grad_() for t in tensors])
        assert all(map(bits_equal, evaluate(call("cpp"), inputs), wanted))


def test_wide_gates_with_fewer_products_than_taps():
    assert_like_reference(31, 256, 256, 5, torch.float32)


def test_fewer_products_round_no_more_than_the_best_convolution():
    """Against a reference that is given NCHW, whose sums oneDNN makes in several parts: five times as exact as NHWC."""
    tensors = leaves(32, 256, 1, 7, torch.float32)
    wide = [t.detach().double() for t in tensors]
    planes = [t.detach().contiguous() for t in tensors]
    with torch.no_grad():
        assert_within_budget(call("cpp")(*tensors), call("reference")(*wide), call("reference")(*planes))


def test_results_share_no_memory():
    for channels in (1, 3):
        x, h, *weights = (t.detach() for t in leaves(2, channels, 1, 3, torch.float32))
        results = torch.ops.irnet.conv_gru.cpp(x, h, weights)
        d_x, d_h, gradients = torch.ops.irnet.conv_gru_backward.cpp(x, x, h, weights, *results[1:])
        made = [*results, d_x, d_h, *gradients]
        assert len({t.untyped_storage().data_ptr() for t in (*made, x, h, *weights)}) == len(made) + 2 + len(weights)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_instruction_set(capability):
    """The tests of conv_gru in C++, in a process that may use no more than this one."""
    if os.environ.get("ATEN_CPU_CAPABILITY"):
        pytest.skip("the instruction set is already chosen")
    here = os.path.dirname(__file__)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "cpp and not instruction"]
    command += [__file__, os.path.join(here, "test_gru.py")]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=os.getcwd())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


@each_dtype
@pytest.mark.parametrize("size", [(9, 24, 1, 7), (9, 24, 24, 7), (16, 256, 1, 7)], ids=["narrow", "wide", "products"])
def test_the_same_call_gives_the_same_bits(size, dtype):
    tensors = leaves(*size, dtype)
    torch.set_num_threads(3)
    first = evaluate(call("cpp"), tensors)
    for _ in range(5):
        assert all(map(bits_equal, first, evaluate(call("cpp"), tensors)))


def test_kept_for_the_gradient_are_one_patch_tensor_and_the_gates():
    tensors = leaves(8, 32, 1, 7, torch.float32)
    patch, cells = tensors[0].nbytes, 8 * 7 * 7 * 4
    assert counts.saved_bytes(lambda: call("cpp")(*tensors), tensors) == patch + 2 * cells


def test_autocast_casts_nothing_inside():
    """The operator's dtypes are the caller's choice, also for the convolutions within."""
    tensors = [t.detach() for t in leaves(2, 16, 1, 7, torch.float32)]
    wanted = torch.ops.irnet.conv_gru.cpp(*tensors[:2], tensors[2:])
    with torch.autocast("cpu", torch.bfloat16):
        got = torch.ops.irnet.conv_gru.cpp(*tensors[:2], tensors[2:])
    assert all(map(bits_equal, got, wanted))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, h, w: (x, h[:1], w), r"must both be \[R, C, P, P\]"),
        (lambda x, h, w: (x, h, w[:8]), "wants 9 weights, got 8"),
        (lambda x, h, w: (x, h, [w[0][:, :3], *w[1:]]), "kernels must be"),
        (lambda x, h, w: (x, h, [*w[:3], w[3].expand(4, -1, -1, -1), *w[4:]]), "weight 3 must have 1 channels, got 4"),
        (lambda x, h, w: (x, h, [*w[:2], *(t.expand(2, -1, -1, -1) for t in w[2:6]), w[6], *[w[7].expand(2)] * 2]),
         "1 channel or those of the state"),
    ],
    ids=["state", "number", "kernels", "gates", "width"],
)  # fmt: skip
def test_shapes_are_checked_below_the_public_function(change, message):
    x, h, *weights = (t.detach() for t in leaves(2, 4, 1, 3, torch.float32))
    x, h, weights = change(x, h, weights)
    with pytest.raises(ValueError, match=message):
        torch.ops.irnet.conv_gru.cpp(x, h, weights)
