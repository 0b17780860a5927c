"""What builders of class graphs share: the names of relations, how classes are looked up, and how sources combine.

Reads no file.
"""

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import torch

from ..errors import InputError
from .format import ClassGraph

KIND_OF, HAS_KIND = "is_kind_of", "has_kind"
PART_OF, HAS_PART = "is_part_of", "has_part"
PLURAL, LEFT_RIGHT, SIMILARITY, CO_OCCURRENCE = "plural", "left_right", "similarity", "co_occurs"
INVERSE = {KIND_OF: HAS_KIND, PART_OF: HAS_PART}

Relations = dict[str, dict[tuple[int, int], float]]  # by name: the weight of every edge (src, dst)


@functools.lru_cache(maxsize=1 << 17)
def spoken(name: str) -> str:
    """Normalise a name, so that sources that write it with other capitals, underscores or spaces agree on it."""
    return " ".join(name.replace("_", " ").casefold().split())


def synset_lemma(name: str) -> str | None:
    """The lemma of a class that is named as a synset of nouns, as Visual Genome's are: "hot_dog.n.02"; else None."""
    match = re.fullmatch(r"(.+)\.n\.\d+", name)
    return match and match[1]


def class_index(classes: Sequence[str]) -> dict[str, int]:
    """The index of every class by its `spoken` name; of two that are spoken alike, the first."""
    index: dict[str, int] = {}
    for i, name in enumerate(classes):
        index.setdefault(spoken(name), i)
    return index


def with_inverse(relation: str, edges: Iterable[tuple[int, int]]) -> Relations:
    """Edges of weight 1 of a relation, and their inverses."""
    both: Relations = {relation: {}, INVERSE[relation]: {}}
    for src, dst in edges:
        both[relation][src, dst] = both[INVERSE[relation]][dst, src] = 1.0
    return both


def shares(counts: Counter[tuple[int, int]], least: int = 1) -> dict[tuple[int, int], float]:
    """Weights from counts: of all that a class receives in this relation, the share that comes from src.

    Edges seen fewer than `least` times are left out, but count among all.
    """
    totals: dict[int, int] = defaultdict(int)
    for (_, dst), count in counts.items():
        totals[dst] += count
    return {edge: count / totals[edge[1]] for edge, count in counts.items() if count >= least}


def combine(classes: Sequence[str], sources: Iterable[Relations]) -> ClassGraph:
    """One class graph of several sources.

    Relations of one name become one; an edge that several sources give has the largest of its weights. Edges are
    sorted by (src, dst), and there are no self-loops. Relations without an edge are left out.

    Args:
        classes: Names of the classes, in the data set's order.
        sources: What builders found.

    Returns:
        The class graph. The order of types is that in which relations first appear.

    Raises:
        InputError: There is no edge at all.
    """
    merged: Relations = {}
    for source in sources:
        for name, edges in source.items():
            relation = merged.setdefault(name, {})
            for edge, weight in edges.items():
                if edge[0] != edge[1]:
                    relation[edge] = max(weight, relation.get(edge, 0.0))
    relations = {}
    for name, weights in merged.items():
        if weights:
            edges_in_order = sorted(weights)
            ends = torch.tensor(edges_in_order, dtype=torch.int64)
            weight = torch.tensor([weights[edge] for edge in edges_in_order], dtype=torch.float32)
            relations[name] = (ends[:, 0].contiguous(), ends[:, 1].contiguous(), weight)
    if not relations:
        cure = "check that classes are named as in the sources, or add a source by --from"
        raise InputError("class graph", f"the sources tie no two of the {len(classes)} classes", cure)
    return ClassGraph(list(classes), relations)
