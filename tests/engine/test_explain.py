"""Decisive edges: removal against graphs without the edge, gradients against removal, and images without edges."""

import dataclasses
import json

import pytest
import torch

from irnet.engine import explain
from irnet.engine.explain import EdgeStudy, as_plain, decisive_edges, edge_kinds
from irnet.errors import InputError
from irnet.models import global_module
from irnet.models.irnet import IRNet
from irnet_kernels import EdgeSet
from irnet_kernels.graph.reference import region_adjacency
from tests.models.test_irnet import CLASSES, build, make_batch

CHANGES = {
    "global": {"variant": "global"},
    "full": {"variant": "full"},
    "geometry": {"variant": "full", "learn_geometry": True},
    "mean-assignment": {"variant": "full", "assignment": "mean", "cross_feed": False},
    "last": {"variant": "global", "attention": "last"},
    "no-class-edges": {"variant": "full", "class_edges": False},
    "no-class-path": {"variant": "global", "class_path": False},
    "no-spatial-edges": {"variant": "full", "spatial_edges": False},
}
changed = pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)


def scene(changes, regions=4, dtype=torch.float64) -> tuple[IRNet, torch.Tensor, torch.Tensor]:
    batch = make_batch([(64, 80)], [regions], dtype=dtype)
    return build(**changes).to(dtype), batch.images[0], batch.boxes


def singles(study) -> list[torch.Tensor]:
    return list(torch.arange(len(study.edges.type))[:, None])


@changed
def test_gradients_are_what_removing_a_millionth_of_a_weight_does(changes, monkeypatch):
    monkeypatch.setattr(explain, "EDGES", 1)  # edges in several parts, where they are few
    study = EdgeStudy(*scene(changes))
    for region in (0, 3):
        found = study.first_order(region)
        weights, study.edge_weights = study.edge_weights, [1e-6 * weight for weight in study.edge_weights]
        expected = 1e6 * study.effects(region, singles(study))
        study.edge_weights = weights
        # The second order is a millionth of the first; what is rounded at 1e-16 is divided by 1e-6.
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)
        assert found.abs().max() > 1e-3 and len(found) > 5


@changed
def test_gradients_rank_edges_as_removal_does(changes):
    study = EdgeStudy(*scene(changes))
    rank = lambda values: values.argsort(stable=True).argsort().double()  # noqa: E731
    correlations = []
    for region in range(4):
        both = torch.stack([rank(study.first_order(region)), rank(study.effects(region, singles(study)))])
        correlations.append(torch.corrcoef(both)[0, 1])
    # Of independent rankings of n edges it is 0, with a variance of 1 / (n - 1); three deviations of a mean of four.
    assert torch.stack(correlations).mean() > 3 / (4 * (len(study.edges.type) - 1)) ** 0.5


@changed
def test_removal_is_a_graph_without_the_edge(changes, monkeypatch):
    model, image, boxes = scene(changes)
    study = EdgeStudy(model, image, boxes)
    found = torch.stack([study.without(region, singles(study)) for region in range(len(boxes))], 1)
    for index, logits in enumerate(found):
        edge = study.edges.row(index)
        with monkeypatch.context() as patch:
            if edge.kind == "class":
                zero = without_class_edge(model.graph.class_graph, edge)
                patch.setattr(global_module.GlobalModule, "class_graph", property(lambda module, zero=zero: zero))
            else:
                patch.setattr(global_module, "propagate_regions", propagation_without(edge))
            ptr = torch.tensor([0, len(boxes)])
            expected = model.reason(study.features, boxes, ptr).final.log_softmax(1)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
        assert not torch.allclose(logits, study.final, rtol=0, atol=1e-7), edge  # the edge mattered to someone


def without_class_edge(graph: EdgeSet, edge) -> EdgeSet:
    triples = []
    for edge_type in range(graph.num_types):
        rows = slice(edge_type * graph.num_nodes, (edge_type + 1) * graph.num_nodes)
        counts = graph.indptr.diff()[rows]
        kept = slice(int(graph.indptr[rows.start]), int(graph.indptr[rows.stop]))
        src, dst = graph.indices[kept], torch.arange(graph.num_nodes).repeat_interleave(counts)
        hit = (src == edge.source) & (dst == edge.target) & (edge_type == edge.type)
        triples.append((src, dst, graph.values[kept].where(~hit, 0)))
    return EdgeSet.from_edges(triples, graph.num_nodes)


def propagation_without(edge):
    def propagate_regions(x, boxes, ptr, weight, *, bandwidth, scale=None):
        adjacency = region_adjacency(boxes, bandwidth, x.dtype).detach()
        adjacency[edge.type, edge.target, edge.source] = 0
        weight = weight if scale is None else weight * scale[:, None, None]
        return torch.einsum("tij,jd,tde->ie", adjacency, x, weight)

    return propagate_regions


@changed
def test_the_edges_found_are_the_best_of_all(changes, monkeypatch):
    monkeypatch.setattr(explain, "CANDIDATES", 100)
    model, image, boxes = scene(changes, regions=3)
    study = EdgeStudy(model, image, boxes)
    for region in range(3):
        effects = study.effects(region, singles(study))
        best = effects[effects > 0].sort(descending=True).values[:3]
        edges = decisive_edges(model, image, boxes, region)
        torch.testing.assert_close(torch.tensor([edge.effect for edge in edges], dtype=torch.float64), best)
        assert 0 < len(edges) == len({(e.kind, e.type, e.source, e.target) for e in edges})


def test_candidates_are_those_of_the_largest_gradients(monkeypatch):
    model, image, boxes = scene(CHANGES["full"])
    first = EdgeStudy(model, image, boxes).first_order(1)
    monkeypatch.setattr(explain, "CANDIDATES", 2)
    two = decisive_edges(model, image, boxes, 1, count=1) + decisive_edges(model, image, boxes, 1, count=2)[1:]
    study = EdgeStudy(model, image, boxes)
    expected = study.effects(1, list(first.topk(2).indices[:, None])).sort(descending=True).values
    torch.testing.assert_close(torch.tensor([edge.effect for edge in two], dtype=torch.float64), expected)


def test_names_are_those_of_classes_relations_and_answers():
    model, image, boxes = scene(CHANGES["full"])
    names, relations = list("abcde"), ["is", "has"]
    edges = decisive_edges(model, image, boxes, 0, names, relations, count=100)
    answers = EdgeStudy(model, image, boxes).final.argmax(1)
    kinds = {edge.kind for edge in edges}
    assert kinds == {"region", "class"} and len(edges) > 3
    effects = [edge.effect for edge in edges]
    assert effects == sorted(effects, reverse=True) and effects[-1] > 0
    for edge in edges:
        ends = (edge.source, edge.target)
        numbers = ends if edge.kind == "class" else answers[list(ends)].tolist()
        assert (edge.source_name, edge.target_name) == tuple(names[number] for number in numbers)
        assert edge.type in (relations if edge.kind == "class" else ["left", "right", "above", "below", "overlap"])
    plain = json.loads(json.dumps(as_plain(edges)))
    assert [explain.Edge(**values) for values in plain] == edges
    assert set(plain[0]) == {field.name for field in dataclasses.fields(explain.Edge)}
    # The type says where the source lies.
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    for edge in edges:
        if edge.kind == "region" and edge.type != "overlap":
            x, y = (centre[edge.source] - centre[edge.target]).tolist()
            assert {"left": x < 0, "right": x > 0, "above": y < 0, "below": y > 0}[edge.type]


@pytest.mark.parametrize("variant", ["conv", "local"])
def test_variants_without_a_graph_have_no_edges(variant):
    model, image, boxes = scene({"variant": variant})
    assert edge_kinds(model) == () and decisive_edges(model, image, boxes, 0) == []
    assert EdgeStudy(model, image, boxes).first_order(0).shape == (0,)


def test_a_graph_whose_paths_are_switched_off_has_no_edges():
    model, image, boxes = scene({"variant": "full", "spatial_edges": False, "class_path": False})
    assert edge_kinds(model) == () and decisive_edges(model, image, boxes, 0) == []


def test_kinds_of_edges():
    kinds = {name: edge_kinds(build(**changes)) for name, changes in CHANGES.items()}
    assert {name: found for name, found in kinds.items() if found != ("region", "class")} == {
        "no-class-edges": ("region",),
        "no-class-path": ("region",),
        "no-spatial-edges": ("class",),
    }


@pytest.mark.parametrize("variant", ["global", "full"])
def test_one_box_has_edges_between_classes_alone(variant):
    model, image, boxes = scene({"variant": variant}, regions=1)
    assert {edge.kind for edge in decisive_edges(model, image, boxes, 0, count=100)} == {"class"}
    assert decisive_edges(*scene({"variant": variant, "class_edges": False}, regions=1), 0) == []


@pytest.mark.parametrize("variant", ["global", "full"])
def test_boxes_that_stand_twice_overlap_and_have_no_side(variant):
    model, image, boxes = scene({"variant": variant}, regions=1)
    study = EdgeStudy(model, image, boxes.repeat(2, 1))
    rows = [study.edges.row(index) for index in range(len(study.edges.type))]
    assert [(row.type, row.source, row.target) for row in rows if row.kind == "region"] == [(4, 1, 0), (4, 0, 1)]
    effects = [study.effects(region, singles(study)) for region in (0, 1)]
    torch.testing.assert_close(effects[0][[1, 0, *range(2, len(rows))]], effects[1])
    assert (effects[0] != 0).sum() > 2


def test_hundreds_of_boxes_are_rolled_out_in_parts(monkeypatch):
    model, image, boxes = scene(CHANGES["full"], regions=300, dtype=torch.float32)
    rows, roll_out = [], IRNet.roll_out

    def counted(self, f0, features, regions, weights):
        rows.append(len(regions.boxes))
        return roll_out(self, f0, features, regions, weights)

    monkeypatch.setattr(IRNet, "roll_out", counted)
    edges = decisive_edges(model, image, boxes, 7)
    cells = model.config.patch_size**2
    assert len(edges) == 3 and rows[:2] == [300, 300]
    assert sum(rows) == 300 * (2 + explain.CANDIDATES) and max(rows) * cells <= explain.CELLS


def test_what_is_refused():
    model, image, boxes = scene(CHANGES["full"])
    for region in (-1, 4):
        with pytest.raises(InputError, match=rf"^region: there is no region {region} among 4 boxes; count from 0$"):
            decisive_edges(model, image, boxes, region)
    with pytest.raises(InputError, match=rf"^classes: 2 names for {CLASSES}; "):
        decisive_edges(model, image, boxes, 0, ["a", "b"])
    with pytest.raises(InputError, match=r"^relations: 1 names for 2; "):
        decisive_edges(model, image, boxes, 0, None, ["is"])
    model.classifier.bias.data[0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        decisive_edges(model, image, boxes, 0)


def test_callers_modes_do_not_matter():
    model, image, boxes = scene(CHANGES["full"])
    expected = decisive_edges(model, image, boxes, 2)
    with torch.inference_mode():
        assert decisive_edges(model, image.clone(), boxes.clone(), 2) == expected
    with torch.no_grad():
        assert decisive_edges(model.train(), image, boxes, 2) == expected
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())
