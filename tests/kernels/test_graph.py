"""EdgeSet, propagate and propagate_regions against dense matrices built by loops; refusals that name the edge."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from irnet_kernels import EdgeSet, propagate, propagate_regions
from irnet_kernels.graph.reference import region_adjacency
from irnet_kernels.testing import bits_equal
from tests.kernels import oracles
from tests.kernels.helpers import (
    assert_exact_with_gradients,
    assert_rounded_once,
    box_grid,
    drawn,
    each_device,
    each_dtype,
    each_implementation,
    normal,
    ragged,
    random_edges,
    scenes,
)

INF, NAN = float("inf"), float("nan")


def triple(*edges: tuple[int, int, float]):
    """(src, dst, weight) tensors of the given edges."""
    src, dst, weight = zip(*edges, strict=True) if edges else ((), (), ())
    return torch.tensor(src, dtype=torch.long), torch.tensor(dst, dtype=torch.long), torch.tensor(weight)


def matrices(edges: EdgeSet, indptr, indices, values) -> torch.Tensor:
    """[T, N, N] from the rows in CSR."""
    out = torch.zeros(edges.num_types * edges.num_nodes, edges.num_nodes, dtype=torch.float64)
    for row in range(len(out)):
        for at in range(int(indptr[row]), int(indptr[row + 1])):
            out[row, indices[at]] += values[at].double()
    return out.reshape(edges.num_types, edges.num_nodes, edges.num_nodes)


def from_csr(edges: EdgeSet) -> torch.Tensor:
    """[T, N, N] from the forward rows."""
    return matrices(edges, *edges.tensors()[:3])


def from_transpose(edges: EdgeSet) -> torch.Tensor:
    """[T, N, N] from the transposed rows."""
    return matrices(edges, *edges.tensors()[3:]).mT


@st.composite
def graphs(draw):
    """(nodes, triples, seed): types may be empty, edges repeat, loop and come in any order."""
    nodes = draw(st.integers(1, 6))
    counts = draw(st.lists(st.integers(0, 12), min_size=1, max_size=3))
    seed = draw(st.integers(0, 99))
    return nodes, random_edges(nodes, counts, seed), seed


# ------------------------------------------------------------------------------------------------------------- EdgeSet


@drawn(60)
@given(graph=graphs(), normalize=st.booleans())
def test_edge_set_holds_the_dense_matrices(graph, normalize):
    nodes, triples, _ = graph
    edges = EdgeSet.from_edges(triples, nodes, normalize)
    wanted = oracles.dense(triples, nodes, normalize)
    # Weights add up in float32: at most 12 duplicates, then a row's sum and a division.
    bound = 40 * torch.finfo(torch.float32).eps * wanted.abs()
    assert ((from_csr(edges) - wanted).abs() <= bound).all()
    assert torch.equal(from_transpose(edges), from_csr(edges))
    if normalize:
        sums = from_csr(edges).sum(2)
        assert ((sums == 0) | ((sums - 1).abs() < 1e-6)).all()


@drawn(40)
@given(graph=graphs())
def test_edge_set_layout(graph):
    """Documented dtypes; indices strictly rise within a row, so that every cell occurs once."""
    nodes, triples, _ = graph
    edges = EdgeSet.from_edges(triples, nodes)
    rows = len(triples) * nodes
    for indptr, indices in ((edges.indptr, edges.indices), (edges.transpose_indptr, edges.transpose_indices)):
        assert (indptr.dtype, indices.dtype) == (torch.int64, torch.int32)
        assert len(indptr) == rows + 1
        assert (int(indptr[0]), int(indptr[-1])) == (0, len(indices))
        for row in range(rows):
            own = indices[indptr[row] : indptr[row + 1]].tolist()
            assert own == sorted(set(own))
    assert edges.values.dtype == edges.transpose_values.dtype == torch.float32


def test_duplicates_add_and_loops_stay():
    edges = EdgeSet.from_edges([triple((2, 0, 1.0), (1, 1, 4.0), (2, 0, 2.0))], 3)
    assert from_csr(edges)[0].tolist() == [[0, 0, 3], [0, 4, 0], [0, 0, 0]]


def test_edge_order_does_not_matter():
    src, dst, weight = random_edges(5, [20], seed=3)[0]
    weight = (weight * 16).round()  # sums are exact in any order
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    a = EdgeSet.from_edges([(src, dst, weight)], 5)
    b = EdgeSet.from_edges([(src[order], dst[order], weight[order])], 5)
    assert all(map(torch.equal, a.tensors(), b.tensors()))


def test_zero_rows_stay_zero_when_normalised():
    edges = EdgeSet.from_edges([triple((0, 1, 0.0), (0, 2, 2.0), (1, 2, 6.0))], 3, normalize=True)
    assert from_csr(edges)[0].tolist() == [[0, 0, 0], [0, 0, 0], [0.25, 0.75, 0]]


def test_float64_weights_are_kept():
    edges = EdgeSet.from_edges([(torch.tensor([0]), torch.tensor([1]), torch.tensor([1 / 3], dtype=torch.float64))], 2)
    assert edges.values.tolist() == [1 / 3]


GOOD = triple((0, 1, 1.0))


@pytest.mark.parametrize(
    ("edges", "nodes", "message"),
    [
        ([], 3, "at least one edge type"),
        ([GOOD], -1, "num_nodes must not be negative, got -1"),
        ([GOOD], 2**31, "1 types of 2147483648 nodes are too many"),
        ([GOOD, triple((0, 1, 1.0), (3, 1, 1.0))], 3, r"edge type 1, edge 1 \(3 -> 1.*source is out of range for 3"),
        ([triple((-1, 1, 1.0))], 3, r"edge type 0, edge 0 \(-1 -> 1.*source is out of range"),
        ([triple((0, 0, 1.0), (0, 1, 1.0), (0, 3, 1.0))], 3, r"edge type 0, edge 2 \(0 -> 3.*target is out of range"),
        ([triple((1, -2, 1.0))], 3, "edge type 0, edge 0 .*target is out of range"),
        ([GOOD, GOOD, triple((0, 1, -0.5))], 3, r"edge type 2, edge 0 .*weight -0\.5\).*negative, infinite or NaN"),
        ([triple((0, 1, NAN))], 3, "edge type 0, edge 0 .*weight nan.*negative, infinite or NaN"),
        ([triple((0, 1, 1.0), (0, 1, INF))], 3, "edge type 0, edge 1 .*weight inf.*negative, infinite or NaN"),
        ([triple((0, 0, 1.0))], 0, "edge type 0, edge 0 .*out of range for 0 nodes"),
        ([GOOD, (GOOD[0], GOOD[1], torch.ones(2))], 3, r"edge type 1: .*one length, got \[1\], \[1\], \[2\]"),
        ([(GOOD[0][None], GOOD[1][None], GOOD[2][None])], 3, "edge type 0: .*must be 1-D"),
        ([(GOOD[0].float(), GOOD[1], GOOD[2])], 3, "edge type 0: src and dst must be integers .*float32"),
        ([(GOOD[0], GOOD[1], GOOD[2].int())], 3, "edge type 0: .*weight floating, got .*int32"),
    ],
)
def test_malformed_edges_are_named(edges, nodes, message):
    with pytest.raises(ValueError, match=message):
        EdgeSet.from_edges(edges, nodes)


@pytest.mark.parametrize("field", ["indptr", "transpose_indptr"])
def test_rows_that_do_not_fit_are_named(field):
    edges = EdgeSet.from_edges([GOOD, GOOD], 3)
    with pytest.raises(ValueError, match=rf"^{field} must be \[7\] for 2 types of 3 nodes, got \[4\]"):
        dataclasses.replace(edges, **{field: getattr(edges, field)[:4]})


# ----------------------------------------------------------------------------------------------------------- propagate


@each_device
@drawn(40)
@given(graph=graphs(), batch=st.integers(0, 2))
def test_propagate_equals_dense_matrices(device, graph, batch):
    nodes, triples, seed = graph
    edges = EdgeSet.from_edges([(s, d, w.double()) for s, d, w in triples], nodes)
    x = normal(*[batch] * (batch > 0), nodes, 3, seed=seed).requires_grad_()
    weight = normal(len(triples), 3, 4, seed=seed + 1).requires_grad_()
    got = propagate(x.to(device), edges.to(device), weight.to(device), impl="reference").cpu()
    wanted = oracles.propagate(x, oracles.dense(triples, nodes), weight)
    assert_exact_with_gradients(got, wanted, (x, weight))


@each_device
@each_dtype
@drawn(15)
@given(graph=graphs())
def test_propagate_reference_rounds_once(device, dtype, graph):
    nodes, triples, seed = graph
    edges = EdgeSet.from_edges(triples, nodes).to(device)
    x, weight = normal(nodes, 3, seed=seed).to(dtype), normal(len(triples), 3, 4, seed=seed + 1).to(dtype)
    got = propagate(x.to(device), edges, weight.to(device), impl="reference")
    dense = oracles.dense(triples, nodes)
    scale = oracles.propagate(x.double().abs(), dense, weight.double().abs())
    assert_rounded_once(got, oracles.propagate(x.double(), dense, weight.double()), 12 + nodes + 3 + 3, scale)


@each_implementation("propagate")
def test_isolated_nodes_and_empty_types(impl, device):
    edges = EdgeSet.from_edges([triple((0, 2, 1.0)), triple()], 4).to(device)
    x = normal(4, 3).float().to(device).requires_grad_()
    weight = normal(2, 3, 5, seed=1).float().to(device).requires_grad_()
    out = propagate(x, edges, weight, impl=impl)
    assert out.any(1).tolist() == [False, False, True, False]
    dx, dweight = torch.autograd.grad(out.sum(), (x, weight))
    assert dx.any(1).tolist() == [True, False, False, False]
    assert dweight.flatten(1).any(1).tolist() == [True, False]


@each_implementation("propagate")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_weights_of_edges_have_any_floating_dtype(impl, device, dtype):
    """As after module.half(), which casts a graph's buffers, too."""
    edges = EdgeSet.from_edges([triple((0, 1, 0.5), (2, 1, 2.0), (2, 0, 1.0))], 3)
    cast = [t.to(dtype) if t.is_floating_point() else t for t in edges.tensors()]
    other = EdgeSet(3, 1, *cast).to(device)
    x = torch.tensor([[1.0], [2.0], [4.0]]).to(device).requires_grad_()
    out = propagate(x, other, torch.ones(1, 1, 1, device=device), impl=impl)
    assert out.tolist() == [[4.0], [8.5], [0.0]]
    assert torch.autograd.grad(out.sum(), x)[0].tolist() == [[0.5], [0.0], [3.0]]


@each_implementation("propagate")
def test_a_batch_is_one_graph_per_item(impl, device):
    edges = EdgeSet.from_edges(random_edges(6, [15, 4]), 6).to(device)
    x, weight = normal(3, 6, 4).float().to(device), normal(2, 4, 5, seed=1).float().to(device)
    together = propagate(x, edges, weight, impl=impl)
    alone = torch.stack([propagate(item, edges, weight, impl=impl) for item in x])
    scale = oracles.propagate(x.double().abs().cpu(), from_csr(edges.to("cpu")), weight.double().abs().cpu())
    assert_rounded_once(together, alone.double().cpu(), 2 * 25, scale)


@each_implementation("propagate")
@pytest.mark.parametrize("shape", [(0, 3), (0, 4, 3), (2, 0, 3)], ids=str)
def test_propagate_of_nothing(impl, device, shape):
    nodes = shape[-2]
    edges = EdgeSet.from_edges([triple((0, 1, 1.0)) if nodes else triple()], nodes).to(device)
    x, weight = torch.zeros(shape, device=device).requires_grad_(), torch.ones(1, 3, 2, device=device).requires_grad_()
    out = propagate(x, edges, weight, impl=impl)
    assert out.shape == (*shape[:-1], 2)
    dx, dweight = torch.autograd.grad(out.sum(), (x, weight))
    assert dx.shape == shape
    assert not dweight.any()


# --------------------------------------------------------------------------------------------------- propagate_regions


def regions(impl, device, x, boxes, ptr, weight, **options):
    """propagate_regions on `device`, its result on the CPU."""
    return propagate_regions(*(t.to(device) for t in (x, boxes, ptr, weight)), impl=impl, **options).cpu()


@each_device
@drawn(40)
@given(scene=scenes(boxes_step=0.5), bandwidth=st.sampled_from([3.0, 50.0]))
def test_regions_follow_their_definition(device, scene, bandwidth):
    _, _, boxes, ptr, seed = scene
    x = normal(len(boxes), 3, seed=seed).requires_grad_()
    weight = normal(5, 3, 4, seed=seed + 1).requires_grad_()
    got = regions("reference", device, x, boxes, ptr, weight, bandwidth=bandwidth)
    wanted = oracles.propagate(x, oracles.region_adjacency(boxes, ptr, bandwidth), weight)
    assert_exact_with_gradients(got, wanted, (x, weight))


@each_implementation("propagate_regions")
def test_what_is_learned_has_the_gradients_of_the_definition(impl, device):
    """Bandwidth and scale, by finite differences of dense matrices; far apart, so that differences stay exact."""
    boxes, ptr, x, weight = box_grid(9, 200, step=0.25), ragged(4, 0, 5), normal(9, 3), normal(5, 3, 4, seed=1)
    scale, upstream = normal(5, seed=2), normal(9, 4, seed=3)

    def wanted(bandwidth: float) -> torch.Tensor:
        return oracles.propagate(x, oracles.region_adjacency(boxes, ptr, bandwidth), weight * scale[:, None, None])

    learned = [torch.tensor(30.0, dtype=torch.float64), scale.clone()]
    bandwidth, scales = (t.to(device).requires_grad_() for t in learned)
    got = regions(impl, device, x, boxes, ptr, weight, bandwidth=bandwidth, scale=scales)
    assert torch.allclose(got, wanted(30.0), rtol=1e-12, atol=1e-12)
    d_bandwidth, d_scale = torch.autograd.grad(got, (bandwidth, scales), upstream)
    step = 1e-3
    slope = ((wanted(30.0 + step) - wanted(30.0 - step)) / (2 * step) * upstream).sum()
    assert float(d_bandwidth) == pytest.approx(float(slope), rel=1e-6)
    adjacency = oracles.region_adjacency(boxes, ptr, 30.0)
    parts = [(a @ x @ w * upstream).sum() for a, w in zip(adjacency, weight, strict=True)]
    assert torch.allclose(d_scale.cpu(), torch.stack(parts), rtol=1e-10)


@each_implementation("propagate_regions")
def test_a_bandwidth_is_not_rounded_to_the_states_dtype(impl, device):
    """Nor is what scales the weights: their product is rounded, once."""
    boxes, ptr = box_grid(9, 200, step=0.25), ragged(4, 0, 5)
    x, weight = normal(9, 3).bfloat16(), normal(5, 3, 4, seed=1).bfloat16()
    for bandwidth in (50.0, 50.1):  # one number in bfloat16
        learned = torch.tensor(bandwidth, device=device)
        got = regions(impl, device, x, boxes, ptr, weight, bandwidth=learned)
        assert bits_equal(got, regions(impl, device, x, boxes, ptr, weight, bandwidth=bandwidth))
    scale = torch.full((5,), 1.001, device=device)
    scaled = regions(impl, device, x, boxes, ptr, weight, scale=scale)
    assert bits_equal(scaled, regions(impl, device, x, boxes, ptr, (weight.float() * 1.001).bfloat16()))
    fine = regions(impl, device, x.float(), boxes, ptr, weight.float(), bandwidth=torch.tensor(50.1, device=device))
    assert not bits_equal(fine, regions(impl, device, x.float(), boxes, ptr, weight.float(), bandwidth=50.0))


@each_device
@each_dtype
@drawn(15)
@given(scene=scenes(boxes_step=4.0))
def test_regions_reference_rounds_once(device, dtype, scene):
    _, _, boxes, ptr, seed = scene
    x, weight = normal(len(boxes), 3, seed=seed).to(dtype), normal(5, 3, 4, seed=seed + 1).to(dtype)
    got = regions("reference", device, x, boxes, ptr, weight)
    adjacency = oracles.region_adjacency(boxes, ptr, 50.0)
    scale = oracles.propagate(x.double().abs(), adjacency, weight.double().abs())
    wanted = oracles.propagate(x.double(), adjacency, weight.double())
    # exp's argument carries three roundings of at most 453 / 50 (corners span 320 pixels); sums of 4, 3 and 5 terms.
    assert_rounded_once(got, wanted, 3 * 10 + 8 + 4 + 3 + 5, scale)


def identity_weight(kind: int) -> torch.Tensor:
    """A weight [5, 2, 2] that lets only one type through, unchanged."""
    weight = torch.zeros(5, 2, 2)
    weight[kind] = torch.eye(2)
    return weight


@each_implementation("propagate_regions")
def test_type_order_and_direction(impl, device):
    """Region 1 lies right of and below region 0, and overlaps it."""
    boxes, x = torch.tensor([[0.0, 0, 10, 10], [5, 5, 15, 15]]), torch.tensor([[1.0, 0], [0, 1]])
    seen = [regions(impl, device, x, boxes, ragged(2), identity_weight(kind)) for kind in range(5)]
    hears_0, hears_1, silent = [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]
    left, right, above, below, overlap = (s.tolist() for s in seen)
    assert left == above == [silent, hears_0]
    assert right == below == [hears_1, silent]
    assert overlap == [hears_1, hears_0]


@each_implementation("propagate_regions")
@pytest.mark.parametrize("far", [1e4, 1e6, 1e30, 3e38], ids=str)
def test_far_neighbours_keep_their_weight(impl, device, far):
    """Rows sum to 1 even where every kappa vanishes in float32, and where areas overflow; the nearest one wins."""
    corners = [
        (0, 0, 10, 10),
        (far / 2, 0, far / 2, 10),
        (far,) * 4,
        (-far, -far, far, far),
        (-far, -far, far, far / 2),
    ]
    boxes, x, ptr = torch.tensor(corners, dtype=torch.float32), torch.eye(5), ragged(5)
    for dtype in (torch.float32, torch.float64):
        sums = region_adjacency(boxes, 50.0, dtype).sum(2)
        assert ((sums == 0) | ((sums - 1).abs() < 1e-6)).all()
    only_right = torch.zeros(5, 5, 5)
    only_right[1] = torch.eye(5)
    got = regions(impl, device, x, boxes, ptr, only_right)
    assert got[0].tolist() == [0, 1, 0, 0, 0]  # of all that lie right of region 0, region 1 is nearest by far
    rows = regions(impl, device, x, boxes, ptr, torch.eye(5).expand(5, 5, 5)).sum(1)
    assert ((rows - rows.round()).abs() < 1e-5).all()  # as many as there are types with a neighbour
    assert (rows > 0.5).all()


@each_implementation("propagate_regions")
def test_centres_are_equal_where_float32_says_so(impl, device):
    """Who lies left of whom is a yes or no, on which all implementations have to agree."""
    boxes = torch.tensor([[0.0, 0, 1e6, 10], [2**-5, 0, 1e6, 10], [0.25, 0, 1e6, 10]])
    assert [float(box[0] + box[2]) for box in boxes] == [1e6, 1e6, 1e6 + 0.25]
    left = regions(impl, device, torch.eye(3), boxes, ragged(3), torch.cat([torch.eye(3)[None], torch.zeros(4, 3, 3)]))
    assert left.tolist() == [[0, 0, 0], [0, 0, 0], [0.5, 0.5, 0]]


@each_implementation("propagate_regions")
def test_identical_boxes_only_overlap(impl, device):
    boxes, x = torch.tensor([[3.0, 4, 9, 8]]).expand(3, 4).contiguous(), torch.eye(3)
    sides = torch.cat([torch.eye(3).expand(4, 3, 3), torch.zeros(1, 3, 3)])
    assert not regions(impl, device, x, boxes, ragged(3), sides).any()
    both = regions(impl, device, x, boxes, ragged(3), torch.eye(3).expand(5, 3, 3))
    assert torch.equal(both, (1 - torch.eye(3)) / 2)


@each_implementation("propagate_regions")
@pytest.mark.parametrize("counts", [(), (0, 0), (1,), (1, 0, 1)], ids=str)
def test_lonely_regions_hear_nothing(impl, device, counts):
    count = sum(counts)
    x, weight = normal(count, 3).float().requires_grad_(), normal(5, 3, 4, seed=1).float().requires_grad_()
    out = regions(impl, device, x, box_grid(count, 100), ragged(*counts), weight)
    assert out.shape == (count, 4)
    assert not out.any()
    for gradient in torch.autograd.grad(out.sum(), (x, weight)):
        assert not gradient.any()


@each_implementation("propagate_regions")
@pytest.mark.parametrize("corners", [(NAN, 0, 5, 5), (0, 0, 5, INF), (-INF, 0, 5, 5), (NAN,) * 4], ids=str)
def test_boxes_with_nan_or_infinity_have_no_edges(impl, device, corners):
    boxes = torch.cat([box_grid(3, 100, step=0.25), torch.tensor([corners], dtype=torch.float32)])
    x, weight = normal(4, 3).float().requires_grad_(), normal(5, 3, 4, seed=1).float().requires_grad_()
    out = regions(impl, device, x, boxes, ragged(4), weight)
    alone = regions(impl, device, x[:3], boxes[:3], ragged(3), weight)
    adjacency = oracles.region_adjacency(boxes, ragged(4), 50.0)
    scale = oracles.propagate(x.detach().double().abs(), adjacency, weight.detach().double().abs())
    assert not out[3].any()
    assert_rounded_once(out[:3].detach(), alone.detach().double(), 100, scale[:3])
    dx, dweight = torch.autograd.grad(out.sum(), (x, weight))
    assert not dx[3].any()
    assert dx.isfinite().all()
    assert dweight.isfinite().all()


@each_implementation("propagate_regions")
def test_inverted_and_flat_boxes_overlap_nothing(impl, device):
    boxes = torch.tensor([[0.0, 0, 10, 10], [8, 8, 2, 2], [5, 0, 5, 10], [10, 0, 20, 10]])
    got = regions(impl, device, torch.eye(4), boxes, ragged(4), torch.cat([torch.zeros(4, 4, 4), torch.eye(4)[None]]))
    assert not got.any()  # a shared border is no overlap either


@each_implementation("propagate_regions")
def test_images_do_not_see_each_other(impl, device):
    boxes, ptr, weight = box_grid(7, 100, step=0.25), ragged(3, 0, 4), normal(5, 3, 4, seed=1).float()
    x = normal(7, 3).float()
    wanted = regions(impl, device, x, boxes, ptr, weight)
    x[3:], boxes[3:] = torch.nan, 1.0
    assert bits_equal(regions(impl, device, x, boxes, ptr, weight)[:3].contiguous(), wanted[:3].contiguous())


# ------------------------------------------------------------------------------------------------------------ refusals

EDGES = EdgeSet.from_edges([triple((0, 1, 1.0))], 3)
X, W, W5, B, P = torch.zeros(3, 4), torch.zeros(1, 4, 2), torch.zeros(5, 4, 2), torch.zeros(3, 4), ragged(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: propagate(X[:2], EDGES, W), r"propagate: x must be \[3, D\] or \[B, 3, D\], got \[2, 4\]"),
        (lambda: propagate(X[0], EDGES, W), "propagate: x must be"),
        (lambda: propagate(X[None, None], EDGES, W), "propagate: x must be"),
        (lambda: propagate(X, EDGES, W5), r"propagate: weight must be \[1, 4, D_out\], got \[5, 4, 2\]"),
        (lambda: propagate(X, EDGES, W[:, :3]), "propagate: weight must be"),
        (
            lambda: propagate(X, EDGES, W.double()),
            "propagate: wants one floating dtype, got x .*, weight torch.float64",
        ),
        (lambda: propagate(X.long(), EDGES, W.long()), "propagate: wants one floating dtype"),
        (lambda: propagate(X, EDGES.to("meta"), W), "propagate: wants one device, got .*edges on meta"),
        (lambda: propagate_regions(X[None], B, P, W5), r"propagate_regions: x must be \[R, D\], got \[1, 3, 4\]"),
        (lambda: propagate_regions(X[:2], B, P, W5), "propagate_regions: 2 rows of x, but 3 boxes"),
        (lambda: propagate_regions(X, B.double(), P, W5), "propagate_regions: boxes must be float32"),
        (lambda: propagate_regions(X, B, P.int(), W5), "propagate_regions: ptr must be int64"),
        (lambda: propagate_regions(X, B, P, W), r"propagate_regions: weight must be \[5, 4, D_out\], got \[1, 4, 2\]"),
        (lambda: propagate_regions(X, B, P, W5, bandwidth=0.0), "propagate_regions: bandwidth must be positive, got 0"),
        (
            lambda: propagate_regions(X, B, P, W5, bandwidth=NAN),
            "propagate_regions: bandwidth must be positive, got nan",
        ),
        (
            lambda: propagate_regions(X, B, P, W5, bandwidth=torch.ones(1)),
            r"bandwidth must be a number or floating \[\]",
        ),
        (lambda: propagate_regions(X, B, P, W5, bandwidth=torch.tensor(3)), "bandwidth must be a number or floating"),
        (
            lambda: propagate_regions(X, B, P, W5, bandwidth=torch.ones((), device="meta")),
            "wants one device, got .*bandw",
        ),
        (lambda: propagate_regions(X, B, P, W5, bandwidth=1e-50), "bandwidth must be positive, got 1e-50"),
        (lambda: propagate_regions(X, B, P, W5, scale=torch.ones(5, device="meta")), "wants one device, got scale on"),
        (
            lambda: propagate_regions(X, B, P, W, scale=torch.ones(5)),
            r"weight must be \[5, 4, D_out\], got \[1, 4, 2\]",
        ),
        (
            lambda: propagate_regions(X, B, P, W5[0], scale=torch.ones(5)),
            r"weight must be \[5, 4, D_out\], got \[4, 2\]",
        ),
        (lambda: propagate_regions(X, B, P, W5, scale=torch.ones(4)), r"scale must be floating \[5\], got .*\[4\]"),
        (lambda: propagate_regions(X, B, P.to("meta"), W5), "propagate_regions: wants one device, got .*ptr on meta"),
        (
            lambda: propagate_regions(X, B, ragged(2), W5, impl="reference"),
            "propagate_regions: ptr must rise from 0 to",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
