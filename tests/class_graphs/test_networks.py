"""Class graphs to networkx and back, also through a file of its own format."""

import sys

import pytest
import torch

from irnet.class_graphs.format import ClassGraph
from irnet.class_graphs.networks import from_networkx, to_networkx
from irnet.errors import InputError

networkx = pytest.importorskip("networkx", reason="networkx is not installed: pip install networkx")


def relation(*edges):
    src, dst, weight = zip(*edges, strict=True)
    return torch.tensor(src), torch.tensor(dst), torch.tensor(weight, dtype=torch.float32)


GRAPH = ClassGraph(
    ["wheel", "car", "left_arm", "rug"],  # the last one has no edge
    {"z first": relation((0, 1, 0.1), (1, 2, 1 / 3)), "a second": relation((0, 1, 1), (2, 0, 0))},
)


def same(one, other):
    assert one.classes == other.classes and list(one.relations) == list(other.relations)
    for name, parts in one.relations.items():
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(parts, other.relations[name], strict=True))


def test_there_and_back():
    network = to_networkx(GRAPH)
    assert list(network.nodes) == GRAPH.classes and network.number_of_edges() == 4
    assert network["wheel"]["car"]["z first"]["weight"] == GRAPH.relations["z first"][2][0].item()
    same(from_networkx(network), GRAPH)
    same(from_networkx(network, GRAPH.classes), GRAPH)
    swapped = from_networkx(network, ["rug", "left_arm", "car", "wheel"])
    assert swapped.relations["a second"][0].tolist() == [1, 3]


def test_through_graphml(tmp_path):
    networkx.write_graphml(to_networkx(GRAPH), tmp_path / "graph.graphml")
    same(from_networkx(networkx.read_graphml(tmp_path / "graph.graphml", force_multigraph=True)), GRAPH)


def test_graphs_that_others_made():
    network = networkx.DiGraph([("car", "van")])
    network.add_edge("wheel", "car", weight=2, relation="part")
    graph = from_networkx(network)
    assert graph.classes == ["car", "van", "wheel"] and list(graph.relations) == ["edge", "part"]
    both = from_networkx(networkx.Graph([("car", "van")]), ["van", "car", "rug"])
    assert [part.tolist() for part in both.relations["edge"]] == [[0, 1], [1, 0], [1.0, 1.0]]


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), "1"])
def test_weights_that_are_none(weight):
    network = networkx.DiGraph()
    network.add_edge("car", "van", weight=weight)
    with pytest.raises(InputError, match=r"networkx graph: the edge from 'car' to 'van' has the weight"):
        from_networkx(network)


def test_what_is_no_class_graph(monkeypatch):
    with pytest.raises(InputError, match="the node 'van' is none of the 1 classes"):
        from_networkx(networkx.DiGraph([("car", "van")]), ["car"])
    with pytest.raises(InputError, match="has no edge"):
        from_networkx(networkx.DiGraph())
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(InputError, match=r'networkx: is not installed; pip install "irnet\[graph\]"'):
        to_networkx(GRAPH)
