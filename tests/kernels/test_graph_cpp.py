"""What is special about the C++ kernels of graphs: orders of sums and products, groups of rows, memory, threads."""

import itertools

import pytest
import torch

import irnet_kernels
from irnet_kernels import EdgeSet, counts, propagate, propagate_regions
from irnet_kernels.graph.reference import region_slope
from irnet_kernels.testing import bits_equal
from tests.kernels.helpers import assert_within_budget, box_grid, each_dtype, evaluate, normal, ragged

if "cpp" not in irnet_kernels.available()["propagate"]["cpu"]:
    pytest.skip(f"no C++ kernels: {irnet_kernels.extension.native_reason()}", allow_module_level=True)

CPU = torch.device("cpu")


def graph(nodes: int, types: int, receivers: int, senders: int, edges: int, seed: int = 0) -> EdgeSet:
    """Of every type so many edges, from the first `senders` nodes to the last `receivers`."""
    draw = torch.Generator().manual_seed(seed)
    triples = []
    for _ in range(types):
        src = torch.randint(senders, (edges,), generator=draw)
        dst = nodes - 1 - torch.randint(receivers, (edges,), generator=draw)
        triples.append((src, dst, torch.rand(edges, generator=draw)))
    return EdgeSet.from_edges(triples, nodes, normalize=True)


# Most rows have edges; few nodes receive; few nodes send: products together, after the sums, before the sums.
GRAPHS = {"dense": (700, 3, 700, 700, 4000), "few receive": (700, 3, 40, 700, 900), "few send": (700, 3, 700, 40, 900)}
each_graph = pytest.mark.parametrize("shape", GRAPHS.values(), ids=GRAPHS)


@each_graph
@each_dtype
def test_every_order_keeps_the_budget(shape, dtype):
    """Three images of 700 nodes: more than one group of rows, and one that spans two images."""
    edges = graph(*shape)
    leaves = [normal(3, 700, 40), normal(3, 40, 24, seed=1)]

    def run(impl, compute):
        inputs = [leaf.to(dtype).to(compute).requires_grad_() for leaf in leaves]
        return evaluate(lambda x, weight: propagate(x, edges, weight, impl=impl), inputs)

    for got, exact, reference in zip(
        run("cpp", dtype), run("reference", torch.float64), run("reference", dtype), strict=True
    ):
        assert_within_budget(got, exact, reference)


@pytest.mark.parametrize("receivers", [3000, 200])
@pytest.mark.parametrize("senders", [3000, 200])
def test_memory_is_one_buffer_of_sums(receivers, senders):
    """Beyond its results a call holds tensors no larger than [N, T D] in all, forward and backward."""
    nodes, types = 3000, 5
    edges = graph(nodes, types, receivers, senders, 8000)
    x, weight = normal(1, nodes, 64).float(), normal(types, 64, 64).float()
    buffer = nodes * types * 64 * 4
    ops, rows = torch.ops.irnet, edges.tensors()
    forward = counts.count(lambda: ops.propagate.cpp(x, rows, weight), CPU).peak_allocated_bytes
    assert forward - x.nbytes <= buffer
    backward = counts.count(lambda: ops.propagate_backward.cpp(x, x, rows, weight), CPU).peak_allocated_bytes
    assert backward - x.nbytes - weight.nbytes <= buffer


def test_memory_of_regions_does_not_grow_with_their_pairs():
    """So many bytes for each region, however many there are in an image."""

    def beyond(images: int, regions: int) -> tuple[int, int]:
        count = images * regions
        boxes, ptr = box_grid(count, 500, step=1.0), ragged(*[regions] * images)
        x, weight, bandwidth = normal(count, 8).float(), normal(5, 8, 8).float(), torch.tensor(50.0)
        ops = torch.ops.irnet
        forward = counts.count(lambda: ops.propagate_regions.cpp(x, boxes, ptr, weight, bandwidth), CPU)
        arguments = (x, x, boxes, ptr, weight, bandwidth, True)
        backward = counts.count(lambda: ops.propagate_regions_backward.cpp(*arguments), CPU)
        return forward.peak_allocated_bytes, backward.peak_allocated_bytes

    assert beyond(1, 960) == beyond(96, 10)
    few, many = beyond(4, 200), beyond(4, 800)
    assert all(m <= 4 * f for f, m in zip(few, many, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_sums_over_edges_do_not_depend_on_threads(dtype):
    edges, threads = graph(300, 4, 300, 300, 2000), torch.get_num_threads()
    x, weight = normal(2, 300, 48).to(dtype), normal(4, 48, 40, seed=1).to(dtype)
    boxes, ptr, heard = box_grid(150, 300, step=1.0), ragged(90, 0, 60), normal(150, 48).to(dtype)
    spatial = normal(5, 48, 40, seed=2).to(dtype)

    def both(*leaves):
        return torch.cat(
            [
                propagate(leaves[0], edges, leaves[1], impl="cpp").flatten(),
                propagate_regions(leaves[2], boxes, ptr, leaves[3], impl="cpp").flatten(),
            ]
        )

    def run(count):
        torch.set_num_threads(count)
        return evaluate(both, [t.clone().requires_grad_() for t in (x, weight, heard, spatial)])

    try:
        wanted = run(1)
        assert all(map(bits_equal, run(1), wanted))
        twice = run(2)
        assert all(map(bits_equal, run(2), twice))
        # With an identity for weights the sums over edges are seen as they are.
        only = [graph(300, 1, *nodes, 2000) for nodes in ((300, 300), (40, 300), (300, 40))]
        identity = torch.eye(48, dtype=dtype)[None]
        sums = {}
        for count in (1, 2):
            torch.set_num_threads(count)
            sums[count] = [propagate(x, edges, identity, impl="cpp") for edges in only]
            for kind in range(5):
                alone = torch.zeros(5, 48, 48, dtype=dtype)
                alone[kind] = identity[0]
                sums[count].append(propagate_regions(heard, boxes, ptr, alone, impl="cpp"))
        assert all(map(bits_equal, sums[1], sums[2]))
    finally:
        torch.set_num_threads(threads)
    # Matrix products are PyTorch's: how they split their sums may depend on threads, but by no more than rounding.
    for a, b in zip(twice, wanted, strict=True):
        bound = 8 * torch.finfo(dtype).eps * float(b.abs().max())
        assert (a.double() - b.double()).abs().max() <= bound


@each_dtype
def test_many_regions_keep_the_budget(dtype):
    """Images of up to 300 regions, identical boxes among them, in more than one group; the bandwidth is learned."""
    ptr = ragged(300, 1, 0, 250, 300, 300, 2)
    boxes = box_grid(int(ptr[-1]), 600, step=1.0)
    boxes[10:20] = boxes[9]
    leaves = [normal(len(boxes), 24), normal(5, 24, 20, seed=1), torch.tensor(60.0).double()]

    def run(impl, compute):
        inputs = [leaf.to(dtype).to(compute).requires_grad_() for leaf in leaves]
        return evaluate(
            lambda x, weight, bandwidth: propagate_regions(x, boxes, ptr, weight, bandwidth=bandwidth, impl=impl),
            inputs,
        )

    *results, slope = zip(run("cpp", dtype), run("reference", torch.float64), run("reference", dtype), strict=True)
    for got, exact, reference in results:
        assert_within_budget(got, exact, reference)
    # The bandwidth's gradient is one number, a sum of terms that cancel: held against the sum of their magnitudes.
    x, weight = (leaf.to(dtype).double() for leaf in leaves[:2])
    upstream = normal(len(boxes), 20, seed=7).to(dtype).double()
    terms = torch.cat(
        [
            torch.einsum("tij,jd,tde->ie", region_slope(boxes[own], 60.0, torch.float64), x[own], weight)
            for own in (slice(a, b) for a, b in itertools.pairwise(ptr.tolist()))
        ]
    )
    scale = float((terms * upstream).abs().sum())
    assert abs(float(slope[0]) - float(slope[1])) <= 4 * torch.finfo(dtype).eps * scale


X, W = torch.zeros(1, 3, 4), torch.zeros(2, 4, 5)
STARTS, INDICES, VALUES = torch.tensor([0, 1, 1, 1, 1, 1, 2]), torch.tensor([2, 0], dtype=torch.int32), torch.ones(2)


@pytest.mark.parametrize(
    "broken",
    [
        (STARTS[:-1], INDICES, VALUES),
        (STARTS.flip(0), INDICES, VALUES),
        (STARTS + 1, INDICES, VALUES),
        (STARTS, INDICES + 1, VALUES),
        (STARTS, INDICES - 1, VALUES),
        (STARTS, INDICES, VALUES[:1]),
        (STARTS, INDICES),
    ],
    ids=["short", "falling", "beyond", "index above", "index below", "values", "five tensors"],
)
def test_edges_that_are_no_edge_set_are_refused(broken):
    """The operators behind the public function keep within their arrays, whatever an EdgeSet was made of by hand."""
    sound = (STARTS, INDICES, VALUES)
    for edges in ([*broken, *sound], [*sound, *broken]):
        with pytest.raises(ValueError, match="propagate: "):
            torch.ops.irnet.propagate.cpp(X, edges, W)
        with pytest.raises(ValueError, match="propagate_backward: "):
            torch.ops.irnet.propagate_backward.cpp(torch.zeros(1, 3, 5), X, edges, W)


def test_a_transpose_of_other_edges_reads_nothing_from_outside():
    """Few send, by the transpose; the edges name others: sums after the products find no product."""
    edges = EdgeSet.from_edges([(torch.tensor([7, 7, 7]), torch.tensor([0, 1, 2]), torch.ones(3))], 8)
    other = EdgeSet.from_edges([(torch.tensor([0]), torch.tensor([5]), torch.ones(1))], 8)
    x, weight = torch.ones(1, 8, 4), torch.ones(1, 4, 4)
    for both in ((edges, other), (other, edges)):
        rows = both[0].tensors()[:3] + both[1].tensors()[3:]
        out = torch.ops.irnet.propagate.cpp(x, rows, weight)
        assert set(out.unique().tolist()) <= {0.0, 4.0}


def test_an_empty_ptr_is_refused():
    nothing = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="propagate_regions: ptr must be"):
        torch.ops.irnet.propagate_regions.cpp(
            torch.zeros(0, 3), torch.zeros(0, 4), nothing, torch.zeros(5, 3, 2), torch.tensor(50.0)
        )
