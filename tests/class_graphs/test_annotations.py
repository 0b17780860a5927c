"""The class graph derived from annotations: which classes it ties, with which weights, and when it refuses."""

import pytest
import torch

from irnet.class_graphs.annotations import derive_class_graph
from irnet.class_graphs.format import load_class_graph, save_class_graph
from irnet.errors import InputError

CLASSES = ["cup", "table", "lamp"]


class Labelled:
    """A data set with annotations and no images."""

    def __init__(self, classes, supercategories, labels):
        self.classes, self.supercategories, self.labels = classes, supercategories, labels

    def image_labels(self):
        return [torch.tensor(labels, dtype=torch.int64) for labels in self.labels]


def edges(graph, name):
    return [(int(s), int(d), round(float(w), 6)) for s, d, w in zip(*graph.relations[name], strict=True)]


def test_derive():
    # cup in images 0, 1, 2; table in 0, 1; lamp in 2 alone; a fourth class nowhere; image 3 is empty
    dataset = Labelled([*CLASSES, "rug"], ["thing", "flat", "thing", "flat"], [[0, 1, 0, 0], [1, 0], [2, 0], []])
    graph = derive_class_graph(dataset)
    assert graph.classes == [*CLASSES, "rug"]
    assert list(graph.relations) == ["same_supercategory", "co_occurs"]
    assert edges(graph, "same_supercategory") == [(0, 2, 1.0), (1, 3, 1.0), (2, 0, 1.0), (3, 1, 1.0)]
    # weight of (src, dst): of the images with dst, the part that has src
    assert edges(graph, "co_occurs") == [(0, 1, 1.0), (0, 2, 1.0), (1, 0, round(2 / 3, 6)), (2, 0, round(1 / 3, 6))]
    assert [part.dtype for part in graph.relations["co_occurs"]] == [torch.int64, torch.int64, torch.float32]


@pytest.mark.parametrize(
    ("classes", "groups"),
    [
        (["cells", "RBC", "WBC"], ["", "cells", "cells"]),  # as Roboflow writes it
        (["cells", "RBC", "WBC"], ["cells", "cells", "cells"]),
        (["RBC", "WBC", "platelet"], ["cells", "cells", "cells"]),
    ],
)
def test_a_supercategory_of_all_classes_is_none(classes, groups):
    graph = derive_class_graph(Labelled(classes, groups, [[0, 1]]))
    assert edges(graph, "same_supercategory") == [] and len(edges(graph, "co_occurs")) == 2
    with pytest.raises(InputError, match="no two classes share"):
        derive_class_graph(Labelled(classes, groups, [[0]]))


def test_derived_graph_survives_the_file(tmp_path):
    graph = derive_class_graph(Labelled(CLASSES, ["", "", ""], [[0, 1], [0], [0, 2], [0, 1, 2]]))
    assert edges(graph, "same_supercategory") == []  # classes without a supercategory share none
    save_class_graph(graph, tmp_path / "g.json")
    again = load_class_graph(tmp_path / "g.json", CLASSES)
    assert edges(again, "co_occurs") == edges(graph, "co_occurs") != []


def test_derive_refuses_an_edgeless_graph():
    with pytest.raises(InputError, match=r"class graph: no two classes share .*; give a class graph of your own"):
        derive_class_graph(Labelled(CLASSES, ["a", "b", ""], [[0], [1, 1], []]))
