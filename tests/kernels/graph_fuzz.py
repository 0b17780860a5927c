"""Random calls of the operators of graphs and segments, and the check of one; no test is run from here.

A scene is drawn from one source of integers: a seeded generator or Hypothesis. The truth is the reference in float64 of
the same (rounded) inputs. How far a result may be from it follows from the magnitudes that are summed and the number of
roundings; boxes are such that no decision (who is left of whom) is open to rounding.
"""

import itertools
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

import irnet_kernels
from irnet_kernels import EdgeSet
from irnet_kernels.graph import reference
from irnet_kernels.numerics import opmath_dtype
from irnet_kernels.testing import bits_equal
from tests.kernels.fuzz import DTYPES, INF, NAN, laid, storage
from tests.kernels.helpers import ragged, random_edges

FLOAT32 = torch.finfo(torch.float32).eps / 2
TF32 = 2.0**-12  # half a unit of a float32 that matrix units take, which holds what 16 bits do
FAR = 2.0**100  # so far that all that is near falls onto one point, in float32 as in float64
WIDE = 2.0**40  # so wide that an IoU is small, but no less than a float32 can tell
LAYOUTS = ("contiguous", "strided", "transposed", "shifted")
log = logging.getLogger(__name__)  # the last line tells the scene in which a process died


@dataclass(frozen=True)
class Scene:
    """One call of an operator and its gradient. `check(Scene(...), "cpp", "cpu")` makes it again."""

    operator: str
    counts: tuple[int, ...]  # edges of each type, or regions of each image
    images: int  # of propagate's batch; 0 is one without that axis
    nodes: int
    depth: int
    width: int
    dtype: str
    layouts: tuple[str, str]
    boxes: tuple[tuple[float, ...], ...] = ()
    bandwidth: float = 0
    learned: bool = False
    normalize: bool = False
    exact_edges: bool = False  # weights of float64
    seed: int = 0  # of the values


OPERATORS = ("propagate", "propagate_regions", "segment_matmul", "segment_outer")


def random_scene(operator: str, seed: int, small: bool = False) -> Scene:
    return draw_scene(operator, random.Random(seed).randint, small)


@st.composite
def scenes(draw, operator: str, small: bool = False) -> Scene:
    return draw_scene(operator, lambda low, high: draw(st.integers(low, high)), small)


def draw_scene(operator: str, integer: Callable[[int, int], int], small: bool = False) -> Scene:
    """A scene; `integer(low, high)` draws from low .. high, and the lower the plainer. One dimension may be large.

    small  for Triton's interpreter, in which a program takes some milliseconds
    """

    def pick(options):
        return options[integer(0, len(options) - 1)]

    large = pick(("", "", "depth", "width", "count"))
    sizes = {name: pick((17, 33, 130, 300)) if large == name else integer(0, 9) for name in ("depth", "width")}
    common = sizes | {"dtype": pick(tuple(DTYPES)), "layouts": (pick(LAYOUTS), pick(LAYOUTS))}
    common |= {"seed": integer(0, 2**31 - 1)}
    if operator == "propagate":
        nodes = integer(0, 4 if small else 12)
        most = 0 if not nodes else 100 if large == "count" else 12
        counts = tuple(integer(0, pick((most, most, 0))) for _ in range(integer(1, 4)))
        return Scene(
            operator,
            counts,
            images=integer(0, 2 if small else 4),
            nodes=nodes,
            normalize=pick((False, True)),
            exact_edges=pick((False, True)),
            **common,
        )
    counts = [integer(0, 3 if small else 9) for _ in range(integer(0, 4))]
    if large == "count" and counts:
        counts[0] = integer(65, 80)
    if operator != "propagate_regions":
        return Scene(operator, tuple(counts), images=0, nodes=0, **common)
    boxes: list[tuple[float, ...]] = []
    for _ in range(sum(counts)):
        boxes.append(pick(boxes) if boxes and integer(0, 5) == 5 else draw_box(integer, pick))
    return Scene(
        operator,
        tuple(counts),
        images=0,
        nodes=0,
        boxes=tuple(boxes),
        bandwidth=pick((50.0, 3.0, 200.0)),
        learned=pick((False, True)),
        **common,
    )


def draw_box(integer, pick) -> tuple[float, ...]:
    def corner() -> float:
        return integer(-200, 1000) / 4

    def side() -> tuple[float, float]:
        low = corner()
        return low, low + integer(1, 300) / 4

    kinds = {
        "plain": lambda: zip(side(), side(), strict=True),
        "any corners": lambda: ((corner(), corner()), (corner(), corner())),
        "flat": lambda: ((low := corner(), integer(0, 40)), (low, integer(0, 40))),
        "far": lambda: ((pick((-FAR, FAR, 2 * FAR, 0.0)), pick((-FAR, FAR, 0.0))),) * 2,
        "wide": lambda: ((-WIDE, -WIDE), (WIDE, WIDE)),
        "endless": lambda: ((corner(), pick((INF, -INF, NAN))), (corner(), corner())),
        "nothing": lambda: ((NAN, NAN), (NAN, NAN)),
    }
    (x1, y1), (x2, y2) = kinds[pick(("plain", "plain", "plain", *kinds))]()
    return x1, y1, x2, y2


# ---------------------------------------------------------------------------------------------------------------- truth


def distances(boxes: Tensor, ptr: Tensor, bandwidth: Tensor | float) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of every image the adjacency of the four sides, how much farther than the nearest one and how far off everyone
    is; 0 for those who are not on a side. In float64."""
    found = []
    for low, high in itertools.pairwise(ptr.tolist()):
        own = boxes[low:high]
        sides, beyond, _ = reference._pairs(own, torch.float64)
        held = torch.where(own.isfinite().all(1, keepdim=True), own, 0).clamp(-1e37, 1e37).double()
        x, y = (held[:, :2] + held[:, 2:]).mul(0.5).unbind(1)
        off = torch.where(sides, torch.hypot(x[:, None] - x, y[:, None] - y), 0)
        adjacency = reference.region_adjacency(own, bandwidth, torch.float64)[:4]
        found.append((adjacency, torch.where(sides, beyond, 0), off))
    return found


def region_roundings(boxes: Tensor, ptr: Tensor, bandwidth: Tensor | float) -> float:
    """How many roundings of float32 enter an element of the adjacency, at most.

    An exponent carries one of each of the distances that it is the difference of, two of the centres and of the
    quotient; where all are equally far there is none. Others come from exp and its argument, the IoU or the quotient,
    and the sum of a row.
    """
    most, longest = 0.0, 0
    for adjacency, beyond, off in distances(boxes, ptr, bandwidth):
        most = max([most, *(off[(adjacency > 1e-30) & (beyond > 0)] / bandwidth).tolist()])
        longest = max(longest, adjacency.shape[1])
    return 6 * most + 16 + longest


def slope_magnitude(
    x: Tensor, grad: Tensor, weight: Tensor, boxes: Tensor, ptr: Tensor, bandwidth: Tensor | float
) -> Tensor:
    """The sum of the magnitudes that the bandwidth's gradient adds up, a single number, in float64."""
    x, grad, weight = (t.double().abs() for t in (x, grad, weight[:4]))
    total = torch.zeros(()).double()
    parts = distances(boxes, ptr, bandwidth)
    for (low, high), (adjacency, beyond, off) in zip(itertools.pairwise(ptr.tolist()), parts, strict=True):
        near = torch.where(beyond < FAR / 4, off.clamp(max=1e6), 0)  # with others there are no edges
        spread = adjacency * (near + (adjacency * near).sum(2, keepdim=True)) / bandwidth**2
        total += torch.einsum("tij,jd,tde,ie->", spread, x[low:high], weight, grad[low:high])
    return total


@dataclass(frozen=True)
class Work:
    """A scene's operator, as a function of its implementation and of its leaves."""

    call: Callable[..., Tensor]
    leaves: list[Tensor]  # float64
    roundings: float  # of float32, in each term of the result and of the gradients
    products: bool  # whether there are two products, and what is between them may be rounded to the dtype
    regions: tuple = ()


def work(scene: Scene, device: str) -> Work:
    generator = torch.Generator().manual_seed(scene.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    counts, total = scene.counts, sum(scene.counts)
    ptr = ragged(*counts)
    if scene.operator == "propagate":
        triples = [
            (src, dst, weight.double() if scene.exact_edges else weight)
            for src, dst, weight in random_edges(max(scene.nodes, 1), counts, scene.seed)
        ]
        on_cpu = EdgeSet.from_edges(triples, scene.nodes, scene.normalize)
        edges = {kind: on_cpu.to(kind) for kind in {"cpu", device}}

        def call(impl, x, weight):
            return irnet_kernels.propagate(x, edges[x.device.type], weight, impl=impl)

        shape = (*(scene.images,) * (scene.images > 0), scene.nodes, scene.depth)
        terms = total + len(counts) * (scene.depth + scene.width) + max(scene.images, 1) * scene.nodes + 8
        return Work(call, [normal(*shape), normal(len(counts), scene.depth, scene.width)], terms, True)
    if scene.operator == "propagate_regions":
        boxes = torch.tensor(scene.boxes, dtype=torch.float32).reshape(-1, 4)
        on = {kind: (boxes.to(kind), ptr.to(kind)) for kind in {"cpu", device}}

        def call(impl, x, weight, bandwidth=scene.bandwidth):
            return irnet_kernels.propagate_regions(x, *on[x.device.type], weight, bandwidth=bandwidth, impl=impl)

        leaves = [normal(total, scene.depth), normal(5, scene.depth, scene.width)]
        leaves += [torch.tensor(scene.bandwidth).double()] * scene.learned
        terms = region_roundings(boxes, ptr, scene.bandwidth) + 5 * (scene.depth + scene.width) + 2 * total + 8
        return Work(call, leaves, terms, True, (boxes, ptr, scene.bandwidth))
    bounds = {kind: ptr.to(kind) for kind in {"cpu", device}}

    def call(impl, a, b):
        return getattr(irnet_kernels, scene.operator)(a, bounds[a.device.type], b, impl=impl)

    shape = (len(counts), scene.depth, scene.width) if scene.operator == "segment_matmul" else (total, scene.width)
    return Work(call, [normal(total, scene.depth), normal(*shape)], scene.depth + scene.width + total + 8, False)


# ---------------------------------------------------------------------------------------------------------------- check


def check(scene: Scene, impl: str, device: str) -> None:
    """The operator with its gradients in `impl` on `device`; AssertionError names what is wrong."""
    log.info("check(%r, %r, %r)", scene, impl, device)
    dtype, doing = DTYPES[scene.dtype], work(scene, device)
    dtypes = [opmath_dtype(dtype) if leaf.dim() == 0 else dtype for leaf in doing.leaves]
    rounded = [leaf.to(d) for leaf, d in zip(doing.leaves, dtypes, strict=True)]
    placed = [
        laid(leaf.to(device), layout) if leaf.dim() else leaf.to(device)
        for leaf, layout in zip(rounded, (*scene.layouts, ""), strict=False)
    ]
    untouched = [storage(t).clone() for t in placed]
    shape = doing.call("reference", *rounded).shape
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(scene.seed + 1)).to(dtype)

    def run(impl: str, leaves: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        out = doing.call(impl, *leaves)
        return [t.cpu() for t in (out.detach(), *torch.autograd.grad(out, leaves, upstream))]

    got = run(impl, placed, upstream.to(device))
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what is allocated
    try:
        assert all(map(bits_equal, got, run(impl, placed, upstream.to(device)))), "the second call gives other bits"
    finally:
        torch.use_deterministic_algorithms(False)
    for tensor, before in zip(placed, untouched, strict=True):
        assert torch.equal(storage(tensor), before), "an input was written to"

    exact = run("reference", [leaf.double() for leaf in rounded], upstream.double())
    scale = run("reference", [leaf.double().abs() for leaf in rounded], upstream.double().abs())
    if scene.learned:
        scale[3] = slope_magnitude(rounded[0], upstream, rounded[1], *doing.regions)
    names = ("the result", *(f"gradient {index}" for index in range(len(placed))))
    for name, d, found, wanted, magnitude in zip(names, (dtype, *dtypes), got, exact, scale, strict=True):
        assert found.dtype == d and found.shape == wanted.shape, f"{name}: {found.dtype} {list(found.shape)}"
        info = torch.finfo(d)
        share = doing.roundings * (FLOAT32 if dtype != torch.float64 else info.eps)
        if dtype.itemsize == 2:
            # Sums are rounded before they are multiplied, and products before those of all types are added up.
            share += TF32 + torch.finfo(dtype).eps if doing.products else 0
        # What is smaller than the dtype can hold is summed, too.
        least = info.smallest_normal * info.eps * (1 + doing.roundings * 10)
        bound = share * magnitude + info.eps / 2 * wanted.abs() + least
        wrong = ~((found.double() - wanted).abs() <= bound)  # also for a NaN
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            raise AssertionError(
                f"{name}: {int(wrong.sum())} of {wrong.numel()} elements are wrong, the first at {at}: "
                f"{float(found[at])} instead of {float(wanted[at])} +- {float(bound[at]):.1e}"
            )
