"""The Triton kernels of conv_gru: interpreted on the CPU, compiled where there is a GPU, and compiled ahead of time
where there is none. Launchers are called as they are, without the dispatcher of PyTorch.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from irnet_kernels import ConvGRUWeights, dispatch
from irnet_kernels.aot import compiled, machine_code, tools
from irnet_kernels.aot.compiled import TritonKernel
from irnet_kernels.gru import configurations, reference
from irnet_kernels.testing import bits_equal
from tests.kernels.helpers import assert_exact, assert_within_budget, each_dtype, gru_weights, normal
from tests.kernels.triton_modules import Noted, copy_on, guarded, load
from tests.tools import here

FORWARD = ("out", "new", "reset", "update")
BACKWARD = ("d_inputs", "d_state", *ConvGRUWeights._fields)
SIXTEEN = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "DESCRIPTORS": 0, "num_warps": 4, "num_stages": 2}
# NumPy's, where the interpreter computes with infinite values, which is meant.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
KERNELS_OF_NARROW_GATES = {
    f"conv_gru_{name}_kernel"
    for name in ("forward", "inputs_backward", "product_backward", "weight_backward", "state_backward")
}
each_width = pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])


@pytest.fixture(autouse=True)
def nothing_is_tuned(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("IRNET_TUNED", raising=False)
    configurations.tuned.cache_clear()
    yield
    configurations.tuned.cache_clear()


@pytest.fixture(params=["interpreted", "cuda"])
def gru(request):
    """A fresh copy of the module with its launchers; they run on `gru.device`."""
    return copy_on(request.param, "gru", lambda module: forward(module, Scene(1, 1, 1, 1).inputs(torch.float32)))


class Scene:
    """Seeded float64 arguments: the upstream gradient, x, h and nine weights.

    Some have one sign. Else the gradient of a narrow gate's bias, one number, could be the small rest of large terms,
    and those come from a matrix product with rounded operands.
    """

    def __init__(self, regions: int, channels: int, gates: int, size: int):
        grad, x, h = (normal(regions, channels, size, size, seed=seed) for seed in (9, 0, 1))
        self.patches, self.weights = [grad.abs(), x, h.abs()], gru_weights(channels, gates, seed=2)
        self.weights[1] = self.weights[1].abs()

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Of the forward launcher."""
        _, x, h = (t.to(dtype) for t in self.patches)
        return x, h, [w.to(dtype) for w in self.weights]

    def kept(self, dtype: torch.dtype) -> tuple:
        """Of the backward launcher: the same n, r and u for everyone, which decide whether relu has a slope."""
        x, h, weights = self.inputs(dtype)
        return self.patches[0].to(dtype), x, h, weights, *reference.conv_gru(x, h, weights)[1:]


def placed(arguments, change) -> list:
    """The arguments with all tensors changed."""
    return [[change(w) for w in a] if isinstance(a, list) else change(a) for a in arguments]


def forward(gru, arguments) -> dict[str, Tensor]:
    results = gru.conv_gru(*placed(arguments, lambda t: t.to(gru.device)))
    return {name: t.cpu() for name, t in zip(FORWARD, results, strict=True)}


def backward(gru, arguments) -> dict[str, Tensor]:
    d_inputs, d_state, weights = gru.conv_gru_backward(*placed(arguments, lambda t: t.to(gru.device)))
    for gradient, weight in zip(weights, arguments[3], strict=True):
        assert gradient.stride() == torch.empty_like(weight).stride()
    return {name: t.cpu() for name, t in zip(BACKWARD, (d_inputs, d_state, *weights), strict=True)}


def check(gru, scene: Scene, dtype: torch.dtype = torch.float32, only_forward: bool = False) -> None:
    """Both launchers against the reference in float64, by the rule of irnet_kernels.testing."""
    inputs, kept = scene.inputs(dtype), scene.kept(dtype)
    got = forward(gru, inputs)
    if not only_forward:
        got |= backward(gru, kept)

    def defined(compute: torch.dtype) -> dict[str, Tensor]:
        found = dict(zip(FORWARD, reference.conv_gru(*placed(inputs, lambda t: t.to(compute))), strict=True))
        d_inputs, d_state, weights = reference.conv_gru_backward(*placed(kept, lambda t: t.to(compute)))
        return found | dict(zip(BACKWARD, (d_inputs, d_state, *weights), strict=True))

    exact, plain = defined(torch.float64), defined(dtype)
    for name, result in got.items():
        if name in (*FORWARD, "d_inputs", "d_state"):
            assert result.is_contiguous(memory_format=torch.channels_last), name
        if dtype == torch.float64:
            assert_exact(result, exact[name])
        else:
            assert_within_budget(result, exact[name], plain[name], name)


def small_blocks(monkeypatch, **changes) -> None:
    """Several blocks of everything, with few regions and channels."""
    sizes = {
        name: {bytes_: {key: (SIXTEEN | changes)[key] for key in wanted} for bytes_, wanted in dtypes.items()}
        for name, dtypes in configurations.CONFIGURATIONS.items()
    }
    monkeypatch.setattr(configurations, "CONFIGURATIONS", sizes)


# ------------------------------------------------------------------------------------------------------------- results


@each_dtype
@each_width
def test_kernels_keep_the_budget(gru, dtype, wide):
    """Patches of 3 x 3 have a middle, edges and corners."""
    check(gru, Scene(2, 17, 17 if wide else 1, 3), dtype)


@each_width
def test_float64_is_exact(gru, wide):
    check(gru, Scene(2, 3, 3 if wide else 1, 2), torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "size",
    [(1, 16, 1, 1), (3, 1, 1, 2), (130, 4, 1, 1), (130, 4, 4, 1)],
    ids=lambda s: "R{}-C{}-G{}-P{}".format(*s),
)
def test_odd_sizes(gru, dtype, size):
    """130 regions are more than a tile has."""
    check(gru, Scene(*size), dtype)


def test_patches_of_seven(gru):
    check(gru, Scene(1, 4, 1, 7), torch.bfloat16)


def test_narrow_gates_of_patches_that_fill_a_program(gru):
    check(gru, Scene(1, 4, 1, 8), only_forward=True)


@each_width
def test_several_blocks_of_everything(gru, monkeypatch, wide):
    small_blocks(monkeypatch)
    check(gru, Scene(18, 20, 20, 1) if wide else Scene(18, 20, 1, 2))


def described(gru, monkeypatch) -> list:
    """The tiles of the descriptors that the launchers make from here on."""
    made, descriptor = [], gru.TensorDescriptor

    def noted_descriptor(base, shape, strides, tile):
        made.append(tile)
        return descriptor(base, shape, strides, tile)

    monkeypatch.setattr(gru, "TensorDescriptor", noted_descriptor)
    return made


@each_width
@pytest.mark.parametrize("size", [(18, 32, 1), (1, 16, 2)], ids=lambda s: "R{}-C{}-P{}".format(*s))
def test_descriptors_give_the_same_bits(gru, monkeypatch, wide, size):
    """Tiles end at the last region, and meet the edges of patches."""
    regions, channels, cells = size
    scene, got = Scene(regions, channels, channels if wide else 1, cells), []
    made = described(gru, monkeypatch)
    for descriptors in (0, 1):
        small_blocks(monkeypatch, DESCRIPTORS=descriptors)
        assert not made
        got.append(forward(gru, scene.inputs(torch.bfloat16)) | backward(gru, scene.kept(torch.bfloat16)))
    assert len(made) == (24 if wide else 16)  # the operands of all convolutions and gradients of weights
    for name, result in got[0].items():
        assert bits_equal(result, got[1][name]), name


@each_width
def test_wide_tiles_are_stored_in_parts(gru, wide):
    check(gru, Scene(1, 130, 130 if wide else 1, 1), torch.bfloat16)


@pytest.mark.parametrize(("channels", "dtype"), [(17, torch.bfloat16), (20, torch.float16), (16, torch.float32)])
def test_what_no_descriptor_serves_is_computed_without(gru, monkeypatch, channels, dtype):
    """Rows of the weights' gradient are long enough to have some with 16 bits and 24, not with 17 or 20 channels."""
    small_blocks(monkeypatch, DESCRIPTORS=1)
    made = described(gru, monkeypatch)
    check(gru, Scene(2, channels, 1, 2), dtype)
    assert not made


@pytest.mark.parametrize(("size", "wide"), [(7, False), (64, False), (91, True)])
def test_offsets_are_wide_where_a_tile_spans_more(size, wide):
    """256 rows, a tile's longest side, of both gates' maps have 2^31 elements with patches of 91 x 91 x 512."""
    module = load("gru", interpret=False)
    like = torch.bfloat16, torch.device("cpu")
    constants, _ = module._constants(module.conv_gru_forward_kernel, like, 512, 512, size, WIDE=False)
    assert constants["OFFSET"] == (module.tl.int64 if wide else module.tl.int32)


def test_a_base_that_is_not_aligned_gets_no_descriptor(gru, monkeypatch):
    small_blocks(monkeypatch, DESCRIPTORS=1)
    x, h, weights = placed(Scene(2, 16, 1, 2).inputs(torch.bfloat16), lambda t: t.to(gru.device))
    wanted = gru.conv_gru(x, h, weights)
    packed, whole = guarded(x, 0)
    moved = whole.roll(1).as_strided(x.shape, packed.stride(), packed.storage_offset() + 1)
    made = described(gru, monkeypatch)
    got = gru.conv_gru(moved, h, weights)
    assert not made
    assert all(map(bits_equal, got, wanted))


@each_width
def test_wide_offsets_give_the_same_bits(gru, monkeypatch, wide):
    """Of tiles that span 2^31 elements and more."""
    small_blocks(monkeypatch)
    scene, got = Scene(17, 4, 4 if wide else 1, 1), []
    for most in (gru.MOST_OFFSET, 0):
        monkeypatch.setattr(gru, "MOST_OFFSET", most)
        got.append(forward(gru, scene.inputs(torch.float32)) | backward(gru, scene.kept(torch.float32)))
    for name, result in got[0].items():
        assert bits_equal(result, got[1][name]), name


def test_large_patches_take_the_way_of_wide_gates(gru, monkeypatch):
    monkeypatch.setattr(gru, "MOST_CELLS", 8)
    monkeypatch.setattr(gru, "conv_gru_gates_forward_kernel", None)  # cannot be launched
    check(gru, Scene(2, 4, 1, 3), torch.bfloat16, only_forward=True)


@each_width
def test_no_regions(gru, wide):
    scene = Scene(0, 4, 4 if wide else 1, 3)
    got = forward(gru, scene.inputs(torch.bfloat16))
    shapes = [list(got[name].shape) for name in FORWARD]
    gates = 4 if wide else 1
    assert shapes == [[0, 4, 3, 3], [0, 4, 3, 3], [0, gates, 3, 3], [0, gates, 3, 3]]
    *patches, weights = scene.inputs(torch.bfloat16)
    gradients = backward(gru, scene.kept(torch.bfloat16))
    for leaf, (name, gradient) in zip((*patches, *weights), gradients.items(), strict=True):
        assert gradient.dtype == leaf.dtype and gradient.shape == leaf.shape, name
        assert not gradient.any(), name


def test_a_nan_stays_one(gru):
    """Neither relu nor a mask makes a number of it, nor brings it into another patch."""
    scene = Scene(3, 3, 1, 2)
    wanted = forward(gru, scene.inputs(torch.float32)), backward(gru, scene.kept(torch.float32))
    kept = scene.kept(torch.float32)
    for patch in scene.patches:
        patch[1] = torch.nan
    for t in (kept[0], kept[1], kept[2], *kept[4:]):
        t[1] = torch.inf
    got = forward(gru, scene.inputs(torch.float32)), backward(gru, kept)
    for names, which in ((FORWARD, 0), (BACKWARD[:2], 1)):
        for name in names:
            assert not got[which][name][1].isfinite().any(), name
            assert bits_equal(got[which][name][[0, 2]], wanted[which][name][[0, 2]]), name


# ------------------------------------------------------------------------------------------------------ memory and bits


@each_width
def test_all_of_the_output_is_written_and_nothing_else(gru, monkeypatch, wide):
    """Of intermediate patches, too; other memory is NaN at first. NaN around the inputs would show in the output."""
    found = []

    def empty_map(like, shape, dtype=None):
        found.append(guarded(torch.full(shape, 77.0, dtype=dtype or like.dtype, device=like.device), 77.0))
        return found[-1][0]

    monkeypatch.setattr(gru, "empty_map", empty_map)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    scene = Scene(3, 5, 5 if wide else 1, 2)
    torch.use_deterministic_algorithms(True)
    try:
        for launcher, arguments in ((forward, scene.inputs(torch.float32)), (backward, scene.kept(torch.float32))):
            inside = placed(arguments, lambda t: guarded(t.to(gru.device), torch.nan)[0])
            for name, result in launcher(gru, inside).items():
                assert result.isfinite().all(), name
    finally:
        torch.use_deterministic_algorithms(False)
    for out, whole in found:
        assert not (out == 77).any(), f"not all of {list(out.shape)} was written"
        assert int((whole == 77).sum()) == whole.numel() - out.numel(), "something outside was written"


@each_width
def test_a_patch_does_not_depend_on_the_batch(gru, monkeypatch, wide):
    small_blocks(monkeypatch)
    x, h, weights = Scene(18, 3, 3 if wide else 1, 2).inputs(torch.bfloat16)
    together = forward(gru, (x, h, weights))
    for one in (0, 15, 17):
        alone = forward(gru, (x[one : one + 1], h[one : one + 1], weights))
        for name in FORWARD:
            assert bits_equal(alone[name][0], together[name][one]), name


@each_width
def test_any_strides_give_the_same_bits(gru, wide):
    """With gaps, transposed, and in channels_last, but not on a boundary of 16 bytes."""

    def gaps(t):
        return torch.stack([t, t + 1], -1)[..., 0]

    def transposed(t):
        return t.mT.contiguous().mT if t.dim() > 1 else t

    def shifted(t):
        packed, whole = guarded(t, 7)
        moved = whole.roll(1).as_strided(t.shape, packed.stride(), packed.storage_offset() + 1)
        assert moved.data_ptr() % 16
        return moved

    scene = Scene(2, 16, 16 if wide else 1, 2)
    for launcher, arguments in ((forward, scene.inputs(torch.float32)), (backward, scene.kept(torch.float32))):
        arguments = placed(arguments, lambda t: t.to(gru.device))
        wanted = launcher(gru, arguments)
        for layout in (gaps, transposed, shifted):
            got = launcher(gru, placed(arguments, layout))
            for name, result in got.items():
                assert bits_equal(result, wanted[name]), (name, layout)


# -------------------------------------------------------------------------------------------------------- ahead of time


def spilled(kernel: dict, targets) -> list:
    rows = here(compiled.triton_resources, TritonKernel(**kernel), targets)
    return [row for row in rows if row.spill_bytes]


def test_kernels_compile_for_every_target_without_spills():
    """For all of them what the model launches in bfloat16; the rest, which takes long, for one: the gate takes all.

    Of Triton 3.6, which a machine with an H100 may have, sm_90 alone is held: 16 bytes of wide gates spill on sm_80.
    """
    old = tools.triton_version().startswith("triton 3.6")
    for kernel in load("gru", interpret=False).kernels():
        default = "*bf16" in kernel["types"].values() and not kernel["constexprs"].get("WIDE") and not old
        assert not spilled(kernel, compiled.TARGETS if default else [90]), kernel


@pytest.mark.parametrize("descriptors", [0, 1])
def test_tiles_are_multiplied_by_wgmma_and_copied_in_bulk(monkeypatch, descriptors):
    """In sm_90's machine code: the widest matrix instruction, and loads of 16 bytes or the copy engine's."""
    for name, dtypes in configurations.CONFIGURATIONS.items():
        if "DESCRIPTORS" in dtypes[2]:
            changed = dtypes | {2: dtypes[2] | {"DESCRIPTORS": descriptors}}
            monkeypatch.setitem(configurations.CONFIGURATIONS, name, changed)
    module, seen = load("gru", interpret=False), 0
    for kernel in module.kernels():
        if kernel["constexprs"].get("BLOCK_N") != 256 or kernel["constexprs"].get("WIDE") or kernel["num_warps"] < 8:
            continue
        if kernel["constexprs"].get("TAPS") == 1:  # 32 rows are too few for it
            continue
        (code,) = here(machine_code.read, TritonKernel(**kernel), [90])
        assert not code.resources.spill_bytes, kernel
        loops = [loop.mix for loop in code.loops if loop.mix.matrix]
        assert loops, kernel
        for mix in loops:
            assert set(mix.matrix) == {"HGMMA.64x256x16.F32.BF16"}, kernel
            assert mix.matrix["HGMMA.64x256x16.F32.BF16"] == 4
            assert mix.instructions < 200
            assert set(mix.loads) == ({"UTMALDG bulk"} if descriptors else {"LDGSTS 128"}), kernel
        seen += 1
    assert seen == 5


def test_products_of_tf32_and_odd_channels_compile():
    """Of a single channel Triton makes a constant, the interpreter does not; 24 are no multiple of a block."""
    module = load("gru", interpret=False)
    multiply = [k for k in module.kernels() if "PRECISION" in k["constexprs"] and "*bf16" not in k["types"].values()]
    assert len(multiply) == 11
    for kernel in multiply:
        tf32 = kernel | {"constexprs": kernel["constexprs"] | {"PRECISION": "tf32"}}
        assert not spilled(tf32, [90] if kernel["constexprs"].get("WIDE") else [80, 90]), kernel
    largest = [k | {"constexprs": k["constexprs"] | {"CELLS": 256}} for k in multiply if "CELLS" in k["constexprs"]]
    assert len(largest) == 1 and not spilled(largest[0], [80, 90])
    for channels in (1, 24):
        for kernel in module.kernels(channels=channels)[15:]:
            if channels > 1 and kernel["constexprs"].get("WIDE"):
                continue
            constants, types = dict(kernel["constexprs"]), dict(kernel["types"])
            for name in ("channels", "outputs", "gate_channels"):
                if channels == 1 and name in types and not (name == "outputs" and constants["TAPS"] == 1):
                    constants[name] = 1
                    del types[name]
            changed = kernel | {"types": types, "constexprs": constants, "multiples_of_16": ()}
            assert here(compiled.triton_resources, TritonKernel(**changed), [90])


def noted(module, scene: Scene, dtype: torch.dtype) -> list[tuple]:
    """The launches (kernel, grid, arguments, named arguments) of both launchers."""
    launches = []
    patches, weights = [t.to(dtype) for t in scene.patches], [w.to(dtype) for w in scene.weights]
    gates = patches[0][:, : len(weights[-1])]
    with pytest.MonkeyPatch.context() as patch:
        for name in {kernel["function"].__name__ for kernel in module.kernels()}:
            patch.setattr(module, name, Noted(getattr(module, name), launches))
        module.conv_gru(*scene.inputs(dtype))
        module.conv_gru_backward(*patches, weights, patches[0], gates, gates)
    return launches


def test_what_is_compiled_ahead_is_what_is_launched():
    module = load("gru", interpret=False)
    shipped = module.kernels()
    triton_names = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16"}
    seen = []
    for dtype in (torch.float32, torch.bfloat16):
        for gates in (1, 512):
            for name, _, given, named in noted(module, Scene(1, 512, gates, 7), dtype):
                arguments = dict(zip(getattr(module, name).arg_names, given, strict=False)) | named
                types = {
                    key: triton_names[value.dtype] if isinstance(value, Tensor) else "i32"
                    for key, value in arguments.items()
                    if isinstance(value, Tensor) or (type(value) is int and not key.isupper() and "num_" not in key)
                }
                for kernel in shipped:
                    options = {key: value for key, value in kernel.items() if key.startswith("num_")}
                    whole = dict.fromkeys(kernel["types"]) | kernel["constexprs"] | options
                    given = {key: None if key in types else value for key, value in arguments.items()}
                    if (name, types, given) == (kernel["function"].__name__, kernel["types"], whole):
                        seen.append(shipped.index(kernel))
                        assert all(arguments[key] % 16 == 0 for key in kernel["multiples_of_16"])
                        break
                else:
                    raise AssertionError(f"{name} with {types}, {arguments} is not compiled ahead")
    assert set(seen) == set(range(len(shipped)))


@pytest.mark.parametrize(("allowed", "wanted"), [("tf32", "tf32"), ("ieee", "ieee"), ("none", "ieee")])
def test_float32_is_rounded_to_tf32_where_pytorch_may(allowed, wanted):
    module = load("gru", interpret=False)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = allowed
    try:
        for dtype, expected in ((torch.float32, wanted), (torch.bfloat16, "ieee")):
            launches = noted(module, Scene(1, 16, 1, 2), dtype)
            found = {named["PRECISION"] for *_, named in launches if "PRECISION" in named}
            assert found == {expected}
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_launchers_have_the_operators_signatures():
    """Parameters in the order of the schemas: they are registered as they are."""
    module = load("gru", interpret=False)
    for name in ("conv_gru", "conv_gru_backward"):
        wanted = [argument.name for argument in dispatch.overload(name, "triton")._schema.arguments]
        assert list(getattr(module, name).__annotations__) == [*wanted, "return"]


# --------------------------------------------------------------------------------------------------------------- tuning


def written(file, kernel="conv_gru_forward_kernel", dtype="float32", device="cpu", **changes):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({device: {kernel: {dtype: SIXTEEN | changes}}}))
    return file


def blocks() -> int:
    """BLOCK_M of the forward kernel, as a fresh copy of the module launches it."""
    configurations.tuned.cache_clear()  # as in a new process
    launches = noted(load("gru", interpret=False), Scene(1, 16, 1, 2), torch.float32)
    return next(named["BLOCK_M"] for name, *_, named in launches if name == "conv_gru_forward_kernel")


def test_tuned_files_are_read(monkeypatch, tmp_path):
    """The file that `tune` writes, for its device and dtype; before it those that the environment names, in order."""
    shipped = blocks()
    own = configurations.tuned_file("cpu")
    cases = [
        (own, {"device": "another"}, "", shipped),
        (own, {"dtype": "bfloat16"}, "", shipped),
        (own, {"BLOCK_M": 256}, "", 256),
        (tmp_path / "a", {"BLOCK_M": 128}, "a", 128),
        (tmp_path / "b", {"BLOCK_M": 32}, "b a", 32),
    ]
    for file, changes, named, wanted in cases:
        written(file, **changes)
        monkeypatch.setenv("IRNET_TUNED", os.pathsep.join(str(tmp_path / name) for name in named.split()))
        assert blocks() == wanted, changes
    assert shipped not in (256, 128, 32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expecting"),
        ("[]", "list"),
        ('{"cpu": {"conv_gru_forward_kernel": 3}}', "int"),
        ({"kernel": "no_kernel"}, "no 'no_kernel' to configure"),
        ({"dtype": "float8"}, "no 'float8' to configure"),
        ({"GROUP": 8}, "conv_gru_forward_kernel wants BLOCK_M, .* got .*GROUP"),
        ({"BLOCK_M": "16"}, "BLOCK_M cannot be '16'"),
        ({"BLOCK_M": 24}, "BLOCK_M cannot be 24"),
        ({"num_stages": 0}, "num_stages cannot be 0"),
        ({"DESCRIPTORS": 2}, "DESCRIPTORS cannot be 2"),
        ({"num_warps": True}, "num_warps cannot be True"),
    ],
    ids=str,
)
def test_malformed_tuned_files_are_refused(monkeypatch, tmp_path, content, message):
    file = tmp_path / "tuned.json"
    written(file, **content) if isinstance(content, dict) else file.write_text(content)
    monkeypatch.setenv("IRNET_TUNED", str(file))
    with pytest.raises(ValueError, match=f"tuned.json: .*{message}"):
        blocks()


class Clock:
    """Time that passes with every measurement: a second each."""

    def __init__(self, times):
        self.times, self.now = iter(times), 0.0

    def do_bench(self, call, **options):
        assert callable(call)
        assert options["return_mode"] == "median"
        self.now += 1
        took = next(self.times)
        if isinstance(took, BaseException):
            raise took
        return took

    def __call__(self) -> float:
        return self.now


SHIPPED = SIXTEEN | {"BLOCK_M": 128}
TRIED = [SIXTEEN, SIXTEEN | {"BLOCK_M": 32}, SIXTEEN | {"BLOCK_M": 64}]


@pytest.fixture
def tune(gru, monkeypatch):
    """The module with three candidates beside the shipped configuration, and launchers that compute next to nothing."""
    module = pytest.importorskip("irnet_kernels.gru.tune")
    monkeypatch.setattr(module, "launchers", gru)
    monkeypatch.setattr(module, "CANDIDATES", {4: TRIED})
    for name, dtypes in configurations.CONFIGURATIONS.items():
        if "BLOCK_N" in dtypes[4]:
            monkeypatch.setitem(configurations.CONFIGURATIONS, name, dtypes | {4: SHIPPED})

    def run(times, until=float("inf"), **options):
        clock = Clock(times)
        monkeypatch.setattr(module.triton.testing, "do_bench", clock.do_bench)
        deadline = module.Deadline(until, clock)
        return module.tune(1, 2, 1, torch.float32, device=gru.device, until=deadline, **options)

    run.module = module
    return run


def fastest(file, kernel: str = "conv_gru_forward_kernel") -> dict:
    (table,) = json.loads(file.read_text()).values()
    return table[kernel]["float32"]


def test_tuning_keeps_the_fastest(tune):
    """What was written is what the launchers read, of all kernels; how long each took is beside it."""
    file = tune([4.0, 2.0, 1.0, 3.0] * 9)
    (table,) = json.loads(file.read_text()).values()
    tiled = {name for name, sizes in configurations.CONFIGURATIONS.items() if "BLOCK_N" in sizes[4]}
    assert table == {name: {"float32": TRIED[1]} for name in tiled}
    assert configurations.read(file)
    (log,) = json.loads(file.with_suffix(".times.json").read_text()).values()
    assert [entry["ms"] for entry in log["conv_gru_forward_kernel"]["float32"]] == [4.0, 2.0, 1.0, 3.0]


def test_a_candidate_that_fails_is_lost_with_its_reason(tune, monkeypatch, gru):
    """By an error when it runs, by an error of its compiler, by a wrong result; a slow shipped configuration stays."""
    whole, calls = gru.conv_gru, []

    def conv_gru(x, h, weights):
        sizes = configurations.configuration("conv_gru_forward_kernel", x.dtype, x.device)
        calls.append(sizes["BLOCK_M"])
        if sizes == TRIED[0]:
            raise RuntimeError("no registers")
        out, *rest = whole(x, h, weights)
        return (out + 1 if sizes == TRIED[1] else out, *rest)

    monkeypatch.setattr(gru, "conv_gru", conv_gru)
    file = tune([9.0, ValueError("lost when it is timed")] + [9.0, 1.0, 1.0, 1.0] * 8, gates=["narrow"])
    assert fastest(file) == SHIPPED
    assert {16, 32, 64, 128} <= set(calls)
    (log,) = json.loads(file.with_suffix(".times.json").read_text()).values()
    lost = [entry.get("lost", "") for entry in log["conv_gru_forward_kernel"]["float32"]]
    assert lost[0] == ""
    assert lost[1] == "RuntimeError: no registers"
    assert "wrong by" in lost[2]
    assert lost[3] == "ValueError: lost when it is timed"
    assert fastest(file, "conv_gru_weight_backward_kernel") == TRIED[0]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit()], ids=["interrupted", "ended"])
def test_what_was_found_stays_when_tuning_is_stopped(tune, stop):
    """In the second kernel, of which one candidate has been tried; the rest keep what they had."""
    with pytest.raises(type(stop)):
        tune([4.0, 2.0, 1.0, 3.0, 4.0, 3.0, stop])
    file = configurations.tuned_file("cpu")
    if not file.is_file():
        (file,) = file.parent.glob("conv_gru-*.json")
    assert fastest(file) == TRIED[1]
    assert fastest(file, "conv_gru_inputs_backward_kernel") == TRIED[0]
    (table,) = configurations.read(file).values()
    assert len(table) == 2
    assert not list(file.parent.glob(".*"))


def test_tuning_ends_in_time(tune, capsys):
    """Five seconds: all of the first kernel, one measurement of the second. A later run begins with what is there."""
    file = tune([4.0, 2.0, 1.0, 3.0, 4.0], until=5.0)
    (table,) = configurations.read(file).values()
    assert list(table) == ["conv_gru_forward_kernel", "conv_gru_inputs_backward_kernel"]
    assert "out of time at conv_gru_inputs_backward_kernel" in capsys.readouterr().out
    assert tune([4.0, 2.0, 3.0, 1.0], until=4.0) == file
    assert fastest(file) == TRIED[2]
    assert fastest(file, "conv_gru_inputs_backward_kernel") == SHIPPED


def test_candidates_are_compiled_beforehand(tmp_path):
    """By processes that have no GPU, into Triton's cache; a candidate that cannot be compiled is lost alone."""
    here(tools.triton_version)
    program = """
import torch
from irnet_kernels.gru import tune
tune.CANDIDATES = {2: [tune.sizes(16, 16, 16, 4, 2), tune.sizes(3, 16, 16, 4, 2)]}
tune._no_gpu(90)
for index in range(2):
    for name, reason in tune._compile(torch.bfloat16, "narrow", index, 16, 2).items():
        print(index, name, reason.split(":")[0])
"""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lost = [line.split() for line in done.stdout.splitlines()]
    assert {index for index, *_ in lost} == {"1"}
    assert {name for _, name, _ in lost} == KERNELS_OF_NARROW_GATES
    assert {file.stem for file in tmp_path.rglob("*.cubin")} >= KERNELS_OF_NARROW_GATES
