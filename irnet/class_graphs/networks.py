"""Class graphs from and to networkx, and by it the formats that it writes. Imports networkx when it is called."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InputError
from .format import ClassGraph

if TYPE_CHECKING:
    import networkx


def to_networkx(graph: ClassGraph) -> networkx.MultiDiGraph:
    """A class graph as networkx has it.

    Args:
        graph: The class graph.

    Returns:
        A node for every class, by its name, with its `index`; an edge for every edge, with its `relation` (which is its
        key, too), the relation's number `order`, and its `weight`. `networkx.write_graphml` and others write it;
        relations without an edge are not in it.

    Raises:
        InputError: networkx is not installed.
    """
    result = _networkx().MultiDiGraph()
    for i, name in enumerate(graph.classes):
        result.add_node(name, index=i)
    for order, (name, (src, dst, weight)) in enumerate(graph.relations.items()):
        for a, b, w in zip(src.tolist(), dst.tolist(), weight.tolist(), strict=True):
            result.add_edge(graph.classes[a], graph.classes[b], key=name, relation=name, order=order, weight=w)
    return result


def from_networkx(network: networkx.Graph, classes: Sequence[str] | None = None) -> ClassGraph:
    """A class graph from a graph of networkx's.

    Args:
        network: Nodes are classes. An edge's relation is its `relation`, else its key where that is text, else "edge";
            its weight is its `weight`, else 1. Edges without a direction go both ways.
        classes: Names of the classes in the data set's order; None: the nodes by their `index`, else as they come.

    Returns:
        The class graph: relations by their `order`, then as they come, edges sorted by (src, dst).

    Raises:
        InputError: A node is no class, a weight is no finite number from 0 on, or there is no edge.
    """
    if classes is None:
        nodes = sorted(network.nodes(data=True), key=lambda node: node[1].get("index", math.inf))
        classes = [str(node) for node, _ in nodes]
    index = {name: i for i, name in enumerate(classes)}
    unknown = [node for node in network.nodes if str(node) not in index]
    if unknown:
        trouble = f"the node {str(unknown[0])!r} is none of the {len(classes)} classes"
        raise InputError("networkx graph", trouble, "name its nodes as the classes are named")
    edges_of: dict[str, list[tuple[int, int, float]]] = {}
    order: dict[str, float] = {}
    for a, b, key, data in _edges(network):
        relation = str(data.get("relation", key if isinstance(key, str) else "edge"))
        weight = data.get("weight", 1.0)
        if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            cure = "weights are finite and not negative"
            raise InputError("networkx graph", f"the edge from {a!r} to {b!r} has the weight {weight!r}", cure)
        order.setdefault(relation, data.get("order", math.inf))
        edges = edges_of.setdefault(relation, [])
        edges.append((index[str(a)], index[str(b)], float(weight)))
        if not network.is_directed() and a != b:
            edges.append((index[str(b)], index[str(a)], float(weight)))
    if not edges_of:
        raise InputError("networkx graph", "has no edge", "add edges, or run a variant without the global module")
    relations = {}
    for name in sorted(edges_of, key=lambda name: order[name]):
        src, dst, weight = zip(*sorted(edges_of[name]), strict=True)
        relations[name] = (torch.tensor(src), torch.tensor(dst), torch.tensor(weight, dtype=torch.float32))
    return ClassGraph(list(classes), relations)


def _edges(network: networkx.Graph) -> list[tuple[Any, Any, Any, dict[str, Any]]]:
    if network.is_multigraph():
        return list(network.edges(keys=True, data=True))
    return [(a, b, None, data) for a, b, data in network.edges(data=True)]


def _networkx() -> Any:
    try:
        import networkx
    except ModuleNotFoundError as error:
        if error.name != "networkx":
            raise
        raise InputError("networkx", "is not installed", 'pip install "irnet[graph]"') from None
    return networkx
