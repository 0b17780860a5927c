"""A class graph's file: reading, writing, and every way it can be wrong."""

import json
import math

import pytest
import torch

from irnet.class_graphs.format import ClassGraph, load_class_graph, save_class_graph
from irnet.errors import InputError

CLASSES = ["cup", "table", "lamp"]


def write(tmp_path, data):
    path = tmp_path / "class_graph.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def graph_data(edges=((0, 1, 0.5), (1, 2, 2)), classes=CLASSES, name="on"):
    return {"classes": list(classes), "relations": [{"name": name, "edges": [list(edge) for edge in edges]}]}


def test_load(tmp_path):
    data = graph_data()
    data["relations"].append({"name": "empty", "edges": []})
    graph = load_class_graph(write(tmp_path, data), CLASSES)
    assert graph.classes == CLASSES
    assert list(graph.relations) == ["on", "empty"]
    src, dst, weight = graph.relations["on"]
    assert (src.tolist(), dst.tolist(), weight.tolist()) == ([0, 1], [1, 2], [0.5, 2.0])
    assert (src.dtype, dst.dtype, weight.dtype) == (torch.int64, torch.int64, torch.float32)
    assert [len(part) for part in graph.relations["empty"]] == [0, 0, 0]
    assert graph.relations["empty"][0].dtype == torch.int64


@pytest.mark.parametrize(
    ("data", "trouble", "cure"),
    [
        ("{", "not valid JSON", "write {"),
        ([1], "has no list of classes or no list of relations", "write {"),
        ({"classes": CLASSES}, "has no list of classes or no list of relations", "write {"),
        (
            graph_data(classes=["cup", "desk", "lamp"]),
            "not in the data: desk (1); not in the graph: table (1)",
            "derive",
        ),
        (graph_data(classes=["cup", "table"]), "not in the graph: lamp (1)", "derive"),
        (graph_data(classes=["cup", "table", "lamp", "cup"]), "lists 4 classes, the data 3", "derive"),
        (graph_data(classes=["cup", "lamp", "table"]), "class 1 is 'lamp', in the data 'table'", "derive"),
        (graph_data([(0, 3, 1)]), "edge 0 of relation 'on', [0, 3], is out of range", "from 0 to 2"),
        (graph_data([(0, 1, 1), (-1, 0, 1)]), "edge 1 of relation 'on', [-1, 0], is out of range", "from 0 to 2"),
        (graph_data([(0, 1, -0.5)]), "edge 0 of relation 'on' has the weight -0.5", "not negative"),
        (graph_data([(0, 1, math.nan)]), "has the weight nan", "finite"),
        (graph_data([(0, 1, math.inf)]), "has the weight inf", "finite"),
        (graph_data([(0, 1, 1e39)]), "has the weight 1e+39", "finite"),
        (graph_data([(0, 1)]), "edge 0 of relation 'on' is [0, 1], not [src, dst, weight]", "two integer"),
        (graph_data([(0.0, 1, 1)]), "not [src, dst, weight]", "two integer"),
        (graph_data([(0, 1, "1")]), "not [src, dst, weight]", "two integer"),
        (graph_data([]), "has no edge in any relation", "without the global module"),
        ({"classes": CLASSES, "relations": []}, "has no edge in any relation", "without the global module"),
        ({"classes": CLASSES, "relations": [{"edges": []}]}, "a relation has no name", "write {"),
        ({"classes": CLASSES, "relations": [{"name": "on"}]}, "relation 'on' has no list of edges", "write {"),
        ({"classes": CLASSES, "relations": graph_data()["relations"] * 2}, "two relations are named 'on'", "rename"),
    ],
)
def test_load_refuses(tmp_path, data, trouble, cure):
    path = write(tmp_path, data)
    with pytest.raises(InputError) as caught:
        load_class_graph(path, CLASSES)
    assert caught.value.where == str(path)
    assert trouble in caught.value.trouble
    assert cure in caught.value.cure


def test_load_refuses_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: cannot be read .*; check the path of the class graph"):
        load_class_graph(tmp_path / "none.json", CLASSES)


def test_save_and_load_give_the_same_bits(tmp_path):
    weight = torch.rand(50, generator=torch.Generator().manual_seed(0)) * 1e-3
    ends = torch.randint(0, 3, (2, 50), generator=torch.Generator().manual_seed(1))
    graph = ClassGraph(CLASSES, {"b": (ends[0], ends[1], weight), "a": (ends[1], ends[0], 1 / (weight + 1))})
    path = tmp_path / "new" / "class_graph.json"
    save_class_graph(graph, path)
    again = load_class_graph(path, CLASSES)
    assert list(again.relations) == ["b", "a"]
    for name, parts in graph.relations.items():
        assert all(torch.equal(one, two) for one, two in zip(parts, again.relations[name], strict=True))
    assert [file.name for file in path.parent.iterdir()] == ["class_graph.json"]
