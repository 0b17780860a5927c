"""What a class graph consists of: its relations in numbers, and the neighbours of a class. Prints nothing."""

import difflib
from dataclasses import dataclass

import torch

from ..errors import InputError
from .combine import spoken
from .format import ClassGraph


@dataclass(frozen=True)
class RelationStatistics:
    """One relation in numbers.

    name           of the relation
    edges          how many there are
    sources        classes with an edge that leaves
    destinations   classes with an edge that arrives
    most           edges that arrive at the class with most of them
    weights        the smallest, the median and the largest weight; None without an edge
    """

    name: str
    edges: int
    sources: int
    destinations: int
    most: int
    weights: tuple[float, float, float] | None


@dataclass(frozen=True)
class Neighbour:
    """One edge of a class: `outgoing` from it to the class `name`, else the other way."""

    relation: str
    name: str
    weight: float
    outgoing: bool


def statistics(graph: ClassGraph) -> list[RelationStatistics]:
    """Every relation of a class graph in numbers, in the order of types."""
    rows = []
    for name, (src, dst, weight) in graph.relations.items():
        arriving = torch.bincount(dst, minlength=1)
        weights = (weight.min().item(), weight.median().item(), weight.max().item()) if len(weight) else None
        rows.append(
            RelationStatistics(
                name, len(src), len(src.unique()), len(dst.unique()), int(arriving.max()) if len(dst) else 0, weights
            )
        )
    return rows


def isolated(graph: ClassGraph) -> list[str]:
    """The classes without any edge."""
    tied = {i for src, dst, _ in graph.relations.values() for i in (*src.tolist(), *dst.tolist())}
    return [name for i, name in enumerate(graph.classes) if i not in tied]


def neighbours(graph: ClassGraph, name: str) -> list[Neighbour]:
    """All edges of a class, relation by relation, outgoing ones first, the largest weights first.

    Args:
        graph: The class graph.
        name: The class, by its name; capitals and underscores do not count.

    Returns:
        The edges; empty where the class has none.

    Raises:
        InputError: No class is named so.
    """
    i = index_of(graph, name)
    edges = []
    for relation, (src, dst, weight) in graph.relations.items():
        for outgoing, own, other in (True, src, dst), (False, dst, src):
            at = (own == i).nonzero().flatten().tolist()
            for edge in sorted(at, key=lambda edge: (-weight[edge].item(), graph.classes[other[edge]])):
                edges.append(Neighbour(relation, graph.classes[other[edge]], weight[edge].item(), outgoing))
    return edges


def index_of(graph: ClassGraph, name: str) -> int:
    """The index of a class by its name, as it is written or spoken. InputError where no class is named so."""
    if name in graph.classes:
        return graph.classes.index(name)
    spoken_names = [spoken(known) for known in graph.classes]
    if spoken(name) in spoken_names:
        return spoken_names.index(spoken(name))
    close = difflib.get_close_matches(spoken(name), spoken_names, 3)
    cure = "give one of " + ", ".join(graph.classes[spoken_names.index(known)] for known in close)
    if not close:
        cure = f"give one of its {len(graph.classes)} classes, such as {', '.join(graph.classes[:3])}"
    raise InputError("CLASS", f"no class is named {name!r}", cure)
