"""What the operator tests share: the implementations to test, one small call of every operator, the rule of comparison.

Nothing here knows what an operator computes; oracles.py does.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

import irnet_kernels
from irnet_kernels import ConvGRUWeights, EdgeSet, extension
from irnet_kernels.testing import accuracy

AVAILABLE = irnet_kernels.available()
DEVICES = list(AVAILABLE["crop_resize"])
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
each_device = pytest.mark.parametrize("device", DEVICES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def each_implementation(op: str):
    """Parametrise over (impl, device) for all that `available()` lists."""
    return pytest.mark.parametrize(
        ("impl", "device"),
        [pytest.param(impl, device, id=f"{impl}-{device}") for device in DEVICES for impl in AVAILABLE[op][device]],
    )


def drawn(examples: int) -> settings:
    """The Hypothesis settings of every property: the same examples on every run, no deadline."""
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None)


@contextlib.contextmanager
def cpu_path(name: str, taken: bool) -> Iterator[None]:
    """The C++ kernels take this path, or do not, whatever the processor: see CpuPaths in csrc/bindings/tensors.h."""
    native = extension.native()
    before = native.cpu_path(name)
    native.set_cpu_path(name, taken)
    try:
        yield
    finally:
        native.set_cpu_path(name, before)


# ------------------------------------------------------------------------------------------------------------- inputs


def normal(*shape: int, seed: int = 0) -> Tensor:
    """float64 on the CPU, the same on every machine."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ragged(*counts: int) -> Tensor:
    """`ptr` of images that own `counts` regions."""
    return torch.tensor([0, *counts]).cumsum(0)


def box_grid(regions: int, span: float, seed: int = 0, step: float = 0.125) -> Tensor:
    """Boxes with corners on a grid of `step`, from a quarter of `span` outside 0 .. span; some inverted or flat.

    Positions that follow from such corners are never within rounding of the 1e-4 at which a border ends.
    """
    low, high = round(-span / 4 / step), round(span * 5 / 4 / step)
    return torch.randint(low, high, (regions, 4), generator=torch.Generator().manual_seed(seed)).float() * step


@st.composite
def scenes(draw, boxes_step: float = 0.125):
    """(height, width, boxes, ptr, seed) of up to three images with up to four regions each."""
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    ptr = ragged(*draw(st.lists(st.integers(0, 4), max_size=3)))
    seed = draw(st.integers(0, 999))
    return height, width, box_grid(int(ptr[-1]), 48 * boxes_step, seed, boxes_step), ptr, seed


def gru_weights(channels: int, gate: int, seed: int = 0) -> list[Tensor]:
    """Nine float64 tensors in the order of ConvGRUWeights."""
    kernels = [(o, channels, 3, 3) for o in (channels, channels, gate, gate, gate, gate)]
    shapes = [*kernels, (channels,), (gate,), (gate,)]
    return [normal(*shape, seed=seed + i) * (9 * channels) ** -0.5 for i, shape in enumerate(shapes)]


def random_edges(nodes: int, counts: Sequence[int], seed: int = 0) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Unsorted triples with duplicates and self-loops, `counts` edges per type."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randint(0, nodes, (count,), generator=generator),
            torch.randint(0, nodes, (count,), generator=generator),
            torch.rand(count, generator=generator),
        )
        for count in counts
    ]


@dataclass(frozen=True)
class Case:
    """One call of an operator: `call(impl, *leaves)`, with float64 leaves on the CPU to be moved and rounded."""

    op: str
    call: Callable[..., Tensor]
    leaves: list[Tensor]

    def inputs(self, dtype: torch.dtype, device: str, layout: Callable[[Tensor], Tensor] = lambda t: t) -> list[Tensor]:
        """The leaves as differentiable inputs; `layout` may change their strides."""
        return [layout(leaf.to(dtype).to(device)).requires_grad_() for leaf in self.leaves]


# Every maker takes `small` for the checks by finite differences, whose time grows with the square of the size.


def _roi(device: str, small: bool):
    counts = (1, 0, 1) if small else (4, 0, 5)
    return box_grid(sum(counts), 3 if small else 6, seed=1).to(device), ragged(*counts).to(device)


def _crop(device: str, small: bool = False, border: str = "zero") -> Case:
    boxes, ptr = _roi(device, small)

    def call(impl, features):
        return irnet_kernels.crop_resize(features, boxes, ptr, 3 if small else 5, border=border, impl=impl)

    return Case("crop_resize", call, [normal(3, 1, 3, 4) if small else normal(3, 5, 6, 7)])


def _crop_clamp(device: str, small: bool = False) -> Case:
    return _crop(device, small, "clamp")


def _paste(device: str, small: bool = False) -> Case:
    boxes, ptr = _roi(device, small)

    def call(impl, memory, patches):
        return irnet_kernels.paste_mean(memory, patches, boxes, ptr, impl=impl)

    shapes = ((3, 1, 3, 4), (2, 1, 2, 2)) if small else ((3, 5, 6, 7), (9, 5, 4, 4))
    return Case("paste_mean", call, [normal(*shape, seed=seed) for seed, shape in enumerate(shapes)])


def _gru(device: str, small: bool = False, wide: bool = False) -> Case:
    regions, channels, patch = (2, 2, 2) if small else (3, 5, 4)

    # Biases of gates of one channel are no leaves: the gradient of a single number is a sum that may cancel, of which
    # the reference's own error is no measure. test_gru.py holds them against the sum of the magnitudes.
    weights = gru_weights(channels, channels if wide else 1, seed=2)
    leaves = weights if wide or small else weights[:7]

    def call(impl, inputs, state, *leaves):
        rest = (bias.to(inputs) for bias in weights[len(leaves) :])
        return irnet_kernels.conv_gru(inputs, state, ConvGRUWeights(*leaves, *rest), impl=impl)

    shape = (regions, channels, patch, patch)
    return Case("conv_gru", call, [normal(*shape), normal(*shape, seed=1), *leaves])


def _gru_wide(device: str, small: bool = False) -> Case:
    return _gru(device, small, wide=True)


def _propagate(device: str, small: bool = False, batch: Sequence[int] = ()) -> Case:
    edges = EdgeSet.from_edges(random_edges(7, [12, 0, 5]), 7).to(device)

    def call(impl, x, weight):
        return irnet_kernels.propagate(x, edges, weight, impl=impl)

    return Case("propagate", call, [normal(*batch, 7, 4), normal(3, 4, 3, seed=1)])


def _propagate_batch(device: str, small: bool = False) -> Case:
    return _propagate(device, small, [2])


def _regions(device: str, small: bool = False, learned: bool = False) -> Case:
    boxes, ptr = box_grid(9, 200, seed=1, step=0.25).to(device), ragged(4, 0, 5).to(device)

    def call(impl, x, weight, bandwidth=40.0, scale=None):
        return irnet_kernels.propagate_regions(x, boxes, ptr, weight, bandwidth=bandwidth, scale=scale, impl=impl)

    leaves = [normal(9, 4), normal(5, 4, 3, seed=1)]
    return Case("propagate_regions", call, [*leaves, torch.tensor(40.0).double(), normal(5)] if learned else leaves)


def _regions_learned(device: str, small: bool = False) -> Case:
    return _regions(device, small, learned=True)


def _segment_matmul(device: str, small: bool = False) -> Case:
    ptr = ragged(4, 0, 5).to(device)

    def call(impl, x, other):
        return irnet_kernels.segment_matmul(x, ptr, other, impl=impl)

    return Case("segment_matmul", call, [normal(9, 3), normal(3, 3, 4, seed=1)])


def _segment_outer(device: str, small: bool = False) -> Case:
    ptr = ragged(4, 0, 5).to(device)

    def call(impl, x, y):
        return irnet_kernels.segment_outer(x, ptr, y, impl=impl)

    return Case("segment_outer", call, [normal(9, 3), normal(9, 4, seed=1)])


CASES: dict[str, tuple[str, Callable[..., Case]]] = {
    "crop_resize": ("crop_resize", _crop),
    "crop_resize_clamp": ("crop_resize", _crop_clamp),
    "paste_mean": ("paste_mean", _paste),
    "conv_gru": ("conv_gru", _gru),
    "conv_gru_wide_gates": ("conv_gru", _gru_wide),
    "propagate": ("propagate", _propagate),
    "propagate_batch": ("propagate", _propagate_batch),
    "propagate_regions": ("propagate_regions", _regions),
    "propagate_regions_learned": ("propagate_regions", _regions_learned),
    "segment_matmul": ("segment_matmul", _segment_matmul),
    "segment_outer": ("segment_outer", _segment_outer),
}
each_case = pytest.mark.parametrize(
    ("make", "impl", "device"),
    [
        pytest.param(make, impl, device, id=f"{name}-{impl}-{device}")
        for name, (op, make) in CASES.items()
        for device in DEVICES
        for impl in AVAILABLE[op][device]
    ],
)
each_definition = pytest.mark.parametrize(
    ("make", "device"),
    [pytest.param(make, device, id=f"{name}-{device}") for name, (_, make) in CASES.items() for device in DEVICES],
)


# --------------------------------------------------------------------------------------------------------- comparison


def evaluate(call: Callable[..., Tensor], inputs: list[Tensor], seed: int = 7) -> list[Tensor]:
    """The result and the gradient of every input, for a fixed upstream gradient rounded to the result's dtype."""
    out = call(*inputs)
    upstream = normal(*out.shape, seed=seed).to(out.dtype).to(out.device)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


def assert_within_budget(got: Tensor, exact: Tensor, reference: Tensor, what: str = "result") -> None:
    """`got` is as close to the truth as irnet_kernels.testing demands."""
    judged = accuracy(got.cpu(), exact, reference)
    assert judged.ok, f"{what}: error {judged.error:.3e}, budget {judged.budget:.3e}"


def assert_like_reference(make: Callable[..., Case], impl: str, device: str, dtype, layout) -> None:
    """Result and gradients of `impl` on `device` against the reference, by the rule above."""
    case, on_cpu = make(device), make("cpu")

    def reference(compute: torch.dtype) -> list[Tensor]:
        # Inputs and upstream gradient are rounded to `dtype` in every run.
        inputs = [leaf.to(dtype).to(compute).requires_grad_() for leaf in on_cpu.leaves]
        out = on_cpu.call("reference", *inputs)
        upstream = normal(*out.shape, seed=7).to(dtype).to(compute)
        return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]

    got = evaluate(lambda *t: case.call(impl, *t), case.inputs(dtype, device, layout))
    for index, (g, e, r) in enumerate(zip(got, reference(torch.float64), reference(dtype), strict=True)):
        assert_within_budget(g, e, r, f"gradient {index - 1}" if index else "result")


def assert_exact(got: Tensor, oracle: Tensor, relative: float = 1e-12) -> None:
    """A float64 result against an independent oracle, relative to the oracle's largest value."""
    assert got.dtype == torch.float64
    assert got.shape == oracle.shape
    error = (got.detach().cpu() - oracle).abs().max() if oracle.numel() else torch.tensor(0.0)
    assert error <= relative * max(1.0, float(oracle.abs().max()) if oracle.numel() else 0.0), f"error {error:.3e}"


def assert_exact_with_gradients(got: Tensor, oracle: Tensor, inputs: Sequence[Tensor]) -> None:
    """A float64 result and its gradients to `inputs` against an independent, differentiable oracle."""
    assert_exact(got, oracle.detach())
    upstream = normal(*oracle.shape, seed=2)
    gradients = torch.autograd.grad(got, inputs, upstream.to(got.device))
    for gradient, wanted in zip(gradients, torch.autograd.grad(oracle, inputs, upstream), strict=True):
        assert_exact(gradient, wanted)


def assert_rounded_once(got: Tensor, oracle: Tensor, terms: float, scale: Tensor | float) -> None:
    """A result that was accumulated in float32 and rounded once, against an independent float64 oracle.

    terms  how many roundings of float32 enter one element, each at most one eps of `scale`
    scale  the sum of the magnitudes that are added up (a bound for all elements, or one per element)
    """
    info = torch.finfo(got.dtype)
    bound = (
        info.eps / 2 * oracle.abs() + info.smallest_normal * info.eps + terms * torch.finfo(torch.float32).eps * scale
    )
    error = (got.double().cpu() - oracle).abs()
    assert (error <= bound).all(), f"error {float((error - bound).max()):.3e} above the bound"
