"""Class graphs, what belongs together, and their file: reading and writing. Builders stand beside this file."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import files
from ..errors import InputError

_FORMAT = 'write {"classes": [...], "relations": [{"name": ..., "edges": [[src, dst, weight], ...]}]}'


@dataclass
class ClassGraph:
    """Typed, weighted edges between classes; dst receives from src.

    classes    C names, in the data set's order
    relations  by name: (src int64 [E], dst int64 [E], weight float32 [E]); the order of the names is the order of types
    """

    classes: list[str]
    relations: dict[str, tuple[Tensor, Tensor, Tensor]]


def load_class_graph(path: str | os.PathLike, classes: Sequence[str]) -> ClassGraph:
    """The graph in the JSON file `path`, whose class names must be `classes`, in their order.

    InputError where the file cannot be read, is not of the format, names other classes, has an index out of range,
    a weight that is negative or not finite, two relations of one name, or no edge at all.
    """
    names, relations = _read(path)
    _check_classes(path, names, list(classes))
    return _graph(path, list(classes), relations)


def read_class_graph(path: str | os.PathLike) -> ClassGraph:
    """The graph in the JSON file `path`, of whatever classes it names. InputError as of `load_class_graph`."""
    names, relations = _read(path)
    for i, name in enumerate(names):
        if not isinstance(name, str) or name in names[:i]:
            trouble = f"class {i} is {str(name)[:80]!r}, " + ("which stands twice" if name in names[:i] else "no text")
            raise InputError(path, trouble, "give every class a name of its own")
    return _graph(path, names, relations)


def _read(path: str | os.PathLike) -> tuple[list, list]:
    """The lists of classes and of relations in the file, unchecked."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "check the path of the class graph") from None
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"not valid JSON ({error})", _FORMAT) from None
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ("classes", "relations")):
        raise InputError(path, "has no list of classes or no list of relations", _FORMAT)
    return data["classes"], data["relations"]


def _graph(path: str | os.PathLike, classes: list[str], entries: list) -> ClassGraph:
    relations = {}
    for relation in entries:
        if not isinstance(relation, dict) or not isinstance(relation.get("name"), str):
            raise InputError(path, f"a relation has no name: {str(relation)[:80]}", _FORMAT)
        if relation["name"] in relations:
            raise InputError(path, f"two relations are named {relation['name']!r}", "merge them or rename one")
        relations[relation["name"]] = _read_edges(path, relation["name"], relation.get("edges"), len(classes))
    if not any(len(src) for src, _, _ in relations.values()):
        raise InputError(path, "has no edge in any relation", "add edges, or run a variant without the global module")
    return ClassGraph(classes, relations)


def _check_classes(path: str | os.PathLike, names: list, classes: list[str]) -> None:
    cure = "use the class graph made for this data set, or derive one from its annotations"
    texts, known = {str(name) for name in names}, set(classes)
    unknown = [str(name) for name in names if str(name) not in known]
    missing = [name for name in classes if name not in texts]
    parts = [
        f"{what}: {', '.join(some[:5])}{', ...' if len(some) > 5 else ''} ({len(some)})"
        for what, some in (("not in the data", unknown), ("not in the graph", missing))
        if some
    ]
    if parts:
        raise InputError(path, f"its classes are not the data's ({'; '.join(parts)})", cure)
    if len(names) != len(classes):
        raise InputError(path, f"lists {len(names)} classes, the data {len(classes)}: some name stands twice", cure)
    for i, (name, own) in enumerate(zip(names, classes, strict=True)):
        if name != own:
            raise InputError(
                path, f"its classes are in another order: class {i} is {name!r}, in the data {own!r}", cure
            )


def _read_edges(path: str | os.PathLike, name: str, edges: object, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    if not isinstance(edges, list):
        raise InputError(path, f"relation {name!r} has no list of edges", _FORMAT)
    for i, edge in enumerate(edges):
        shaped = isinstance(edge, list) and len(edge) == 3 and type(edge[0]) is int and type(edge[1]) is int
        if not shaped or type(edge[2]) not in (int, float):
            trouble = f"edge {i} of relation {name!r} is {str(edge)[:80]}, not [src, dst, weight]"
            raise InputError(path, trouble, "give two integer class indices and a number")
        if not (0 <= edge[0] < num_classes and 0 <= edge[1] < num_classes):
            trouble = f"edge {i} of relation {name!r}, {edge[:2]}, is out of range"
            raise InputError(path, trouble, f"class indices run from 0 to {num_classes - 1}")
        if not 0 <= edge[2] <= torch.finfo(torch.float32).max:  # false for NaN, too
            trouble = f"edge {i} of relation {name!r} has the weight {str(edge[2])[:40]}"
            raise InputError(path, trouble, "weights are finite and not negative")
    src, dst, weight = zip(*edges, strict=True) if edges else ((), (), ())
    ends = torch.tensor([src, dst], dtype=torch.int64)
    return ends[0], ends[1], torch.tensor(weight, dtype=torch.float32)


def save_class_graph(graph: ClassGraph, path: str | os.PathLike) -> None:
    """Writes `graph` as JSON that `load_class_graph` reads back bit for bit. InputError where it cannot."""
    relations = []
    for name, (src, dst, weight) in graph.relations.items():
        # The shortest decimal that gives the float32 back, instead of the digits of its float64 neighbour.
        short = [float(str(value)) for value in np.asarray(weight)]
        relations.append(
            {"name": name, "edges": [list(edge) for edge in zip(src.tolist(), dst.tolist(), short, strict=True)]}
        )
    files.write(path, json.dumps({"classes": graph.classes, "relations": relations}) + "\n")


def some_edges(graph: ClassGraph) -> None:
    """InputError where a derived graph has none."""
    if not any(len(src) for src, _, _ in graph.relations.values()):
        cure = "give a class graph of your own, or run a variant without the global module"
        raise InputError("class graph", "no two classes share a supercategory or an image", cure)
