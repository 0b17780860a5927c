"""Cases of the kernels suite: every operator of irnet_kernels beside its peers. Measures nothing.

Fewest bytes and FLOPs count every input read once and every output written once, and of the arithmetic the matrix
products and the interpolation; b is an element's size. A step is forward and backward.
"""

import torch

import irnet_kernels
from irnet.models.backbone import STRIDE
from irnet_kernels import ConvGRUWeights, EdgeSet
from irnet_kernels.aot.shipped import cuda_sources, triton_kernels  # noqa: F401 (compiled.py finds them here)
from irnet_kernels.roi.reference import coverage

from .. import peers
from ..case import Setup, Work, case, operator_implementations

ONE_IMAGE = {"images": 1, "regions": 64, "channels": 512, "height": 38, "width": 63, "size": 7}
BATCH = ONE_IMAGE | {"images": 32}
# Small, but large enough that a native kernel executes more instructions than PyTorch does around it.
SMALL_BATCH = {"images": 3, "regions": 8, "channels": 136, "height": 19, "width": 25, "size": 7}


@case("kernels", cpu=ONE_IMAGE, cuda=BATCH, gate=SMALL_BATCH)
def crop_resize(s: Setup) -> Work:
    """A patch of every region, sampled from its image's map; `regions` per image on the average."""
    ptr, boxes = regions_on_map(s)
    count = len(boxes)

    def call(impl, features):
        return irnet_kernels.crop_resize(features, boxes, ptr, s.size, impl=impl)

    # Forward reads the map, or the 4 cells around every sample where those are fewer; backward writes all of its
    # gradient. 4 products and sums per sample and channel.
    patches, cells = count * s.size**2, s.images * s.height * s.width
    return Work(
        [s.normal(s.images, s.channels, s.height, s.width)],
        operator_implementations("crop_resize", s.device, call) | peers.crop_resize(s, boxes, ptr),
        bytes=modes((patches + min(cells, 4 * patches)) * s.channels * b(s), (patches + cells) * s.channels * b(s)),
        flops=modes(8 * patches * s.channels, 8 * patches * s.channels),
        items=count,
        unit="regions",
        baseline="grid_sample",
    )


@case("kernels", cpu=ONE_IMAGE, cuda=BATCH, gate=SMALL_BATCH)
def paste_mean(s: Setup) -> Work:
    """The patches of all regions, resized to their boxes, and their mean added to the map."""
    ptr, boxes = regions_on_map(s)
    count = len(boxes)

    def call(impl, memory, patches):
        return irnet_kernels.paste_mean(memory, patches, boxes, ptr, impl=impl)

    # Forward reads the memory and writes the result; backward reads one gradient, which is the memory's as it stands.
    # 4 products and sums per covered cell and channel.
    patches, cells = count * s.size**2, s.images * s.height * s.width
    covered = int(coverage(boxes, ptr, s.size, s.height, s.width).sum())
    return Work(
        [s.normal(s.images, s.channels, s.height, s.width), s.normal(count, s.channels, s.size, s.size)],
        operator_implementations("paste_mean", s.device, call) | peers.paste_mean(s, boxes, ptr),
        bytes=modes((patches + 2 * cells) * s.channels * b(s), (patches + cells) * s.channels * b(s)),
        flops=modes(8 * covered * s.channels, 8 * covered * s.channels),
        items=count,
        unit="regions",
        baseline="resize all and sum",
    )


@case(
    "kernels",
    cpu={"regions": 64, "channels": 512, "size": 7},
    cuda={"regions": 2048, "channels": 512, "size": 7},
    gate={"regions": 6, "channels": 72, "size": 7},
)
def conv_gru(s: Setup) -> Work:
    """The update of the memory's patches, with gates of one channel."""
    c, patch = s.channels, (s.regions, s.channels, s.size, s.size)
    kernels = [s.normal(o, c, 3, 3, scale=_unit(9 * c)) for o in (c, c, 1, 1, 1, 1)]
    # No inputs: the gradient of a single number is a sum that cancels, and the reference may hit it by chance.
    gate_biases = s.normal(2).split(1)

    def call(impl, inputs, state, *weights):
        biases = (bias.to(inputs.dtype) for bias in gate_biases)
        return irnet_kernels.conv_gru(inputs, state, ConvGRUWeights(*weights, *biases), impl=impl)

    # The two large convolutions, all 9 taps (who skips those outside the patch can beat the limit). Backward: two
    # gradients of each; it reads grad, x, h, n and the weights, and writes the gradients of x, h and the weights.
    numbers, taps = s.regions * c * s.size**2, 9 * s.regions * s.size**2
    forward = 2 * 2 * taps * c**2
    return Work(
        [s.normal(*patch), s.normal(*patch), *kernels, s.normal(c)],
        operator_implementations("conv_gru", s.device, call) | peers.conv_gru(s, *gate_biases),
        bytes=modes((3 * numbers + 18 * c**2) * b(s), (6 * numbers + 36 * c**2) * b(s)),
        flops=modes(forward, 2 * forward),
        items=s.regions,
        unit="regions",
        baseline="plain PyTorch",
    )


@case(
    "kernels",
    cpu={"nodes": 3000, "types": 5, "edges": 40_000, "features": 512},
    gate={"nodes": 60, "types": 3, "edges": 200, "features": 24},
)
def propagate(s: Setup) -> Work:
    """Messages over a random graph in which nearly every node has edges of every type, all of weight 1 (as in PyG)."""
    cells = torch.randint(s.types * s.nodes**2, (s.edges,), generator=s.generator).unique()
    edge_type, cell = cells // s.nodes**2, cells % s.nodes**2
    ends = [(cell[edge_type == t] % s.nodes, cell[edge_type == t] // s.nodes) for t in range(s.types)]
    edges = [(src, dst, torch.ones(len(src))) for src, dst in ends]
    return typed_graph(s, EdgeSet.from_edges(edges, s.nodes).to(s.device))


@case(
    "kernels",
    cpu={"nodes": 1500, "types": 5, "edges": 6000, "features": 512},
    gate={"nodes": 60, "types": 3, "edges": 60, "features": 24},
)
def propagate_sparse(s: Setup) -> Work:
    """Messages over a graph like that of real classes: nine of ten nodes have no edge of a type, some have many."""
    edges = []
    for _ in range(s.types):
        count = s.edges // s.types
        receivers = torch.randperm(s.nodes, generator=s.generator)[: max(1, s.nodes // 10)]
        # The square draws the first receivers far more often than the last.
        dst = receivers[(torch.rand(count, generator=s.generator) ** 2 * len(receivers)).long()]
        src = torch.randint(s.nodes, (count,), generator=s.generator)
        edges.append((src, dst, torch.rand(count, generator=s.generator)))
    return typed_graph(s, EdgeSet.from_edges(edges, s.nodes, normalize=True).to(s.device))


@case(
    "kernels",
    cpu={"images": 32, "regions": 64, "features": 512},
    cuda={"images": 64, "regions": 100, "features": 512},
    gate={"images": 3, "regions": 6, "features": 24},
)
def propagate_regions(s: Setup) -> Work:
    """Messages between the regions of each image, over edges that follow from their boxes."""
    ptr = s.ragged(s.images, s.regions)
    count, types = int(ptr[-1]), 5
    boxes = s.boxes(count, 600, 1000).round()

    def call(impl, x, weight):
        return irnet_kernels.propagate_regions(x, boxes, ptr, weight, impl=impl)

    # Per type the product with A, then that with the weights; A is never stored. Backward has two products for each:
    # it makes A x again, reads x, the upstream gradient and the weights, and writes two gradients.
    nodes, weights = count * s.features, types * s.features**2
    forward = 2 * types * s.features * int(ptr.diff().square().sum()) + 2 * count * weights
    return Work(
        [s.normal(count, s.features), s.normal(types, s.features, s.features, scale=_unit(s.features))],
        operator_implementations("propagate_regions", s.device, call) | peers.propagate_regions(s, boxes, ptr),
        bytes=modes((2 * nodes + weights) * b(s), (3 * nodes + 2 * weights) * b(s)),
        flops=modes(forward, 2 * forward),
        items=count,
        unit="regions",
        baseline="dense einsum",
    )


ASSIGNMENT = {"images": 32, "regions": 64, "classes": 1500, "features": 512}
SMALL_ASSIGNMENT = {"images": 3, "regions": 6, "classes": 40, "features": 24}


@case("kernels", cpu=ASSIGNMENT, gate=SMALL_ASSIGNMENT)
def segment_matmul(s: Setup) -> Work:
    """From classes to regions: what each region [classes] is, times its image's class states [classes, features]."""
    ptr = s.ragged(s.images, s.regions)
    count = int(ptr[-1])

    def call(impl, inputs, other):
        return irnet_kernels.segment_matmul(inputs, ptr, other, impl=impl)

    return Work(
        [s.normal(count, s.classes, scale=_unit(s.classes)), s.normal(s.images, s.classes, s.features)],
        operator_implementations("segment_matmul", s.device, call) | peers.segment_matmul(s, ptr),
        baseline="loop over images",
        **segment_limits(s, count),
    )


@case("kernels", cpu=ASSIGNMENT, gate=SMALL_ASSIGNMENT)
def segment_outer(s: Setup) -> Work:
    """From regions to classes: of an image's regions what they are [classes] by their states [features], added up."""
    ptr = s.ragged(s.images, s.regions)
    count = int(ptr[-1])

    def call(impl, inputs, other):
        return irnet_kernels.segment_outer(inputs, ptr, other, impl=impl)

    return Work(
        [s.normal(count, s.classes, scale=_unit(s.regions)), s.normal(count, s.features)],
        operator_implementations("segment_outer", s.device, call) | peers.segment_outer(s, ptr),
        baseline="loop over images",
        **segment_limits(s, count),
    )


def segment_limits(s: Setup, count: int) -> dict:
    """Bytes, FLOPs and items of either product of segments; each of the two gradients is such a product again."""
    numbers = count * (s.classes + s.features) + s.images * s.classes * s.features
    flops = 2 * count * s.classes * s.features
    return {
        "bytes": modes(numbers * b(s), 2 * numbers * b(s)),
        "flops": modes(flops, 2 * flops),
        "items": count,
        "unit": "regions",
    }


def typed_graph(s: Setup, edges: EdgeSet) -> Work:
    """The work of propagate over some edges."""

    def call(impl, x, weight):
        return irnet_kernels.propagate(x, edges, weight, impl=impl)

    # Aggregate first, then one product for those (node, type) that receive at all. Backward has two products for
    # each: it aggregates x again, reads x, the upstream gradient, the edges and the weights, writes two gradients.
    count, rows = len(edges.values), int((edges.indptr.diff() > 0).sum())
    nodes, weights, stored = s.nodes * s.features, s.types * s.features**2, count * (4 + b(s))
    forward = 2 * rows * s.features**2 + 2 * count * s.features
    return Work(
        [s.normal(s.nodes, s.features), s.normal(s.types, s.features, s.features, scale=_unit(s.features))],
        operator_implementations("propagate", s.device, call) | peers.propagate(s, edges),
        bytes=modes((2 * nodes + weights) * b(s) + stored, (3 * nodes + 2 * weights) * b(s) + stored),
        flops=modes(forward, 2 * forward),
        items=count,
        unit="edges",
        baseline="sparse CSR loop",
    )


def _unit(terms: int) -> float:
    """The scale at which a sum of so many products keeps the size of its terms; a sweep may ask for none."""
    return max(1, terms) ** -0.5


def regions_on_map(s: Setup) -> tuple[torch.Tensor, torch.Tensor]:
    """`ptr` and boxes in cells, inside the map.

    Boxes are of whole pixels: no position is within rounding of where a border ends, where one bit decides whether a
    cell is covered.
    """
    ptr = s.ragged(s.images, s.regions)
    boxes = s.boxes(int(ptr[-1]), (s.height - 1) * STRIDE, (s.width - 1) * STRIDE)
    return ptr, boxes.round() / STRIDE


def b(s: Setup) -> int:
    """Bytes of an element."""
    return s.dtype.itemsize


def modes(forward: float, backward: float) -> dict[str, float]:
    """A figure of each mode."""
    return {"forward": forward, "backward": backward, "step": forward + backward}
