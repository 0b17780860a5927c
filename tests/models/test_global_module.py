"""The global module against a slow, dense reading of its formulas, one image at a time, in float64."""

import math

import pytest
import torch

from irnet.config import ModelConfig
from irnet.models.global_module import GlobalModule, GlobalState, to_classes, to_regions
from irnet.models.regions import Regions
from irnet_kernels import EdgeSet

CLASSES, FEATURES, D, BANDWIDTH = 4, 5, 3, 40.0
# One (src, dst, weight) list per relation of the class graph; class 3 receives nothing, one edge is given twice.
RELATIONS = [[(0, 1, 0.5), (2, 1, 1.5), (3, 0, 1.0), (2, 1, 0.5)], [(1, 2, 2.0)], []]


def class_graph(classes=CLASSES) -> EdgeSet:
    triples = []
    for edges in RELATIONS:
        src, dst, weight = zip(*edges, strict=True) if edges else ((), (), ())
        triples.append((torch.tensor(src).long(), torch.tensor(dst).long(), torch.tensor(weight).double()))
    return EdgeSet.from_edges(triples, classes, normalize=True)


def build(word_vectors=None, logits_in=2, seed=0, **changes) -> GlobalModule:
    torch.manual_seed(seed)
    config = ModelConfig(variant="full", graph_channels=D, graph_layers=3, bandwidth=BANDWIDTH, **changes)
    module = GlobalModule(config, FEATURES, CLASSES, logits_in, class_graph(), word_vectors).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def spatial_adjacency(boxes):
    """[5][R][R]: left, right, above, below, overlap, every row divided by its sum."""
    regions = len(boxes)
    centres = [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in boxes]
    out = torch.zeros(5, regions, regions, dtype=torch.float64)
    for i in range(regions):
        for j in range(regions):
            if i == j:
                continue
            (xi, yi), (xj, yj) = centres[i], centres[j]
            kappa = math.exp(-math.hypot(xi - xj, yi - yj) / BANDWIDTH)
            for kind, holds in enumerate((xj < xi, xj > xi, yj < yi, yj > yi)):
                out[kind, i, j] = kappa * holds
            a, b = boxes[i], boxes[j]
            common = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
            area = lambda box: (box[2] - box[0]) * (box[3] - box[1])  # noqa: E731
            out[4, i, j] = common / (area(a) + area(b) - common)
        for kind in range(5):
            if out[kind, i].sum() > 0:
                out[kind, i] /= out[kind, i].sum()
    return out


def semantic_adjacency():
    out = torch.zeros(len(RELATIONS), CLASSES, CLASSES, dtype=torch.float64)
    for kind, edges in enumerate(RELATIONS):
        for src, dst, weight in edges:
            out[kind, dst, src] += weight
        for c in range(CLASSES):
            if out[kind, c].sum() > 0:
                out[kind, c] /= out[kind, c].sum()
    return out


def slow_read(m, state, p, boxes):
    """The formulas for the regions of one image; state [R, D], p [R, C], boxes: R lists of four."""
    spatial, semantic = spatial_adjacency(boxes), semantic_adjacency()
    classes = m.class_features if hasattr(m, "class_features") else m.class_projection(m.word_vectors)
    for layer in m.layers:
        g_spatial = sum(spatial[t] @ state @ layer.spatial[t] for t in range(5))
        shares = p.T / p.T.sum(1, keepdim=True)  # P' with normalised rows
        z = (shares @ (state @ layer.region_to_class.weight.T) + classes @ layer.class_to_class.weight.T).relu()
        g_semantic = sum(semantic[t] @ z @ layer.semantic[t] for t in range(len(RELATIONS)))
        g = (g_spatial + (p @ g_semantic @ layer.class_to_region.weight.T).relu()).relu()
        state = state + g
    return state


def slow_gru(cell, x, h):
    split = lambda t: t.split(D, -1)  # noqa: E731
    xr, xz, xn = split(x @ cell.weight_ih.T + cell.bias_ih)
    hr, hz, hn = split(h @ cell.weight_hh.T + cell.bias_hh)
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    return (1 - z) * (xn + r * hn).tanh() + z * h


def scene(seed=1):
    """Four images of 3, 0, 4 and 1 regions."""
    torch.manual_seed(seed)
    ptr = torch.tensor([0, 3, 3, 7, 8])
    corner = torch.randint(0, 60, (8, 2)).float()
    boxes = torch.cat([corner, corner + torch.randint(5, 50, (8, 2))], 1)
    boxes[1, :2] = boxes[0, :2]  # equal centres along neither axis are excluded by luck alone: make one pair
    boxes[1, 2:] = boxes[0, 2:]
    p = torch.randn(8, CLASSES, dtype=torch.float64).mul(2).softmax(1)
    return torch.randn(8, D, dtype=torch.float64), p, boxes, ptr


def regions_of(p, boxes, ptr, feature=None) -> Regions:
    """Regions whose last prediction gives the classes the probabilities p [R, C]."""
    return Regions(boxes, boxes / 16, ptr, None, feature, p.log()[:, None])


def read(module, state, p, boxes, ptr):
    return module.read(GlobalState(state, module.weights()), regions_of(p, boxes, ptr))


def images(ptr):
    return [slice(a, b) for a, b in zip(ptr.tolist(), ptr.tolist()[1:], strict=False) if b > a]


@pytest.mark.parametrize("vectors", [None, 6], ids=["learned-classes", "word-vectors"])
def test_read_is_the_dense_reading(vectors):
    words = torch.randn(CLASSES, vectors, dtype=torch.float64) if vectors else None
    module, (state, p, boxes, ptr) = build(words), scene()
    expected = torch.cat([slow_read(module, state[s], p[s], boxes[s].tolist()) for s in images(ptr)])
    found = read(module, state, p, boxes, ptr)
    torch.testing.assert_close(found, expected)
    assert (found - state).abs().max() > 0.1  # something was said at all
    learned = {name.split(".")[0] for name, _ in module.named_parameters()}
    assert learned >= ({"class_projection"} if vectors else {"class_features"}) and "word_vectors" not in learned


def test_one_layer_is_one_term_at_a_time():
    """Each of the paper's terms alone, the others' weights at zero."""
    state, p, boxes, ptr = scene()
    for kept in ("spatial", "semantic"):
        module = build()
        for layer in module.layers:
            for name, parameter in layer.named_parameters():
                if (name == "spatial") != (kept == "spatial"):
                    torch.nn.init.zeros_(parameter)
        found = read(module, state, p, boxes, ptr)
        expected = torch.cat([slow_read(module, state[s], p[s], boxes[s].tolist()) for s in images(ptr)])
        torch.testing.assert_close(found, expected)
        # a region alone in its image hears of no other region, but still of the classes
        assert torch.equal(found[7], state[7]) == (kept == "spatial")


def test_the_gradient_is_the_dense_readings():
    module, (state, p, boxes, ptr) = build(), scene()
    state.requires_grad_()
    wanted = [state, *(w for name, w in module.named_parameters() if name.startswith(("layers", "class_features")))]
    slow = torch.cat([slow_read(module, state[s], p[s], boxes[s].tolist()) for s in images(ptr)])
    probe = torch.randn_like(slow)
    expected = torch.autograd.grad((slow * probe).sum(), wanted)
    found = torch.autograd.grad((read(module, state, p, boxes, ptr) * probe).sum(), wanted)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert theirs.any()


def test_learned_geometry_of_fixed_values_reads_the_same_and_learns():
    fixed, learned, (state, p, boxes, ptr) = build(), build(learn_geometry=True), scene()
    learned.load_state_dict(fixed.state_dict(), strict=False)
    for layer in learned.layers:
        torch.nn.init.constant_(layer.log_bandwidth, math.log(BANDWIDTH))
        torch.nn.init.ones_(layer.scale)
    before = read(learned, state, p, boxes, ptr)
    torch.testing.assert_close(before, read(fixed, state, p, boxes, ptr))
    new = {
        name: parameter for name, parameter in learned.named_parameters() if name.endswith(("log_bandwidth", "scale"))
    }
    assert len(new) == 2 * len(learned.layers)
    gradients = torch.autograd.grad(before.square().sum(), list(new.values()))
    assert all(gradient.any() for gradient in gradients)
    # A step of either changes what is read.
    for name in ("log_bandwidth", "scale"):
        with torch.no_grad():
            getattr(learned.layers[0], name).add_(0.5)
        assert not torch.allclose(read(learned, state, p, boxes, ptr), before)


def test_fresh_geometry_is_that_of_the_config():
    config = ModelConfig(variant="full", graph_channels=D, bandwidth=BANDWIDTH, learn_geometry=True)
    layer = GlobalModule(config, FEATURES, CLASSES, 2, class_graph()).layers[0]
    assert float(layer.log_bandwidth.detach().exp()) == pytest.approx(BANDWIDTH)
    assert layer.scale.tolist() == [1] * 5


def test_write_is_a_gated_recurrent_unit():
    module = build()
    state = torch.randn(6, D, dtype=torch.float64)
    feature = torch.randn(6, FEATURES, dtype=torch.float64)
    logits = torch.randn(6, 2, CLASSES, dtype=torch.float64)
    x = feature @ module.map_feature.weight.T + module.map_feature.bias + logits.flatten(1) @ module.map_logits.weight.T
    regions = Regions(None, None, None, None, feature, logits)
    written = module.write(GlobalState(state, module.weights()), regions)
    torch.testing.assert_close(written.states, slow_gru(module.gru, x.relu(), state))
    assert module.map_logits.bias is None and module.confidence.bias is None


def test_start():
    feature = torch.randn(6, FEATURES, dtype=torch.float64)
    module = build()
    expected = (feature @ module.start_feature.weight.T + module.start_feature.bias).relu()
    regions = Regions(None, None, None, None, feature, None)
    state = module.start(None, regions, module.weights())
    torch.testing.assert_close(state.states, expected)
    assert expected.any() and module.first_read(state, regions) is state.states
    zero = build(region_start="zero").start(None, regions, None).states
    assert zero.shape == (6, D) and not zero.any()


def test_no_regions_at_all():
    module, empty = build(), torch.zeros(0, 4)
    regions = Regions(
        empty, empty, torch.zeros(3).long(), None, torch.zeros(0, 5).double(), torch.zeros(0, 2, 4).double()
    )
    state = module.start(None, regions, module.weights())
    for found in (module.read(state, regions), module.write(state, regions).states):
        assert found.shape == (0, D)


@pytest.mark.parametrize("assignment", ["own", "mean"])
def test_assignment_is_by_the_own_prediction_or_by_the_mean(assignment):
    logits = torch.randn(3, 2, CLASSES)
    expected = {"own": logits[:, 1], "mean": (logits[:, 0] + logits[:, 1]) / 2}[assignment]
    assert torch.equal(build(assignment=assignment).assign(logits), expected.softmax(1))
    assert torch.equal(build(assignment=assignment).assign(logits[:, :1]), logits[:, 0].softmax(1))


def test_to_classes_and_back():
    p = torch.tensor([[0.25, 0.75, 0.0], [0.75, 0.25, 0.0], [1.0, 0.0, 0.0]])
    x = torch.tensor([[4.0, 0.0], [8.0, 4.0], [1.0, 2.0]])
    ptr = torch.tensor([0, 2, 2, 3])
    gathered = to_classes(p, x, ptr)
    assert gathered.tolist() == [[[7, 3], [5, 1], [0, 0]], [[0, 0]] * 3, [[1, 2], [0, 0], [0, 0]]]
    back = to_regions(p, gathered, ptr)
    assert back.tolist() == [[0.25 * 7 + 0.75 * 5, 0.25 * 3 + 0.75], [0.75 * 7 + 0.25 * 5, 0.75 * 3 + 0.25], [1, 2]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_shares_of_thousands_of_classes_are_taken_exactly(dtype):
    """Each class's probability lies below float16's smallest normal number; the shares are 1/4 and 3/4 all the same."""
    p = torch.tensor([[1e-6], [3e-6]]).expand(2, 3000)
    out = to_classes(p, torch.tensor([[4.0], [8.0]], dtype=dtype), torch.tensor([0, 2]))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), torch.full((1, 3000, 1), 7.0), rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_shares_are_exact_under_autocast_too():
    p = torch.tensor([[1e-8], [3e-8]]).expand(2, 3000)
    with torch.autocast("cpu", torch.float16):
        out = to_classes(p, torch.tensor([[4.0], [8.0]]), torch.tensor([0, 2]))
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), torch.full((1, 3000, 1), 7.0), rtol=2e-3, atol=0)


def test_the_class_graph_is_saved_and_moves_with_the_module():
    module = build()
    names = {name for name in module.state_dict() if name.startswith("graph_")}
    assert names == {f"graph_{side}{part}" for side in ("", "t_") for part in ("indptr", "indices", "values")}
    moved = module.to("meta").class_graph
    assert (moved.num_nodes, moved.num_types) == (CLASSES, len(RELATIONS))
    assert {t.device.type for t in moved.tensors()} == {"meta"}


def test_initial_weights():
    torch.manual_seed(0)
    config = ModelConfig(variant="full", graph_channels=64, graph_layers=2)
    module = GlobalModule(config, 96, 30, 2, class_graph(30))
    weights = dict(module.named_parameters())
    expected = {f"{name}.weight": 0.01 for name in ("classifier", "confidence", "map_logits")}
    expected |= {f"{name}.weight": math.sqrt(2 / 96) for name in ("map_feature", "start_feature")}
    expected["class_features"] = 1 / 8
    for name, std in expected.items():
        assert abs(weights[name].std().item() / std - 1) < 5 / math.sqrt(2 * weights[name].numel()), name
    for name in ("classifier", "map_feature", "start_feature"):
        assert not weights[f"{name}.bias"].any()
    assert len(module.layers) == 2 and weights["layers.0.spatial"].shape == (5, 64, 64)
    assert weights["layers.1.semantic"].shape == (len(RELATIONS), 64, 64)
