"""A class graph from a data set's annotations: common supercategories, and classes that occur in one image."""

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import RegionDataset
from .format import ClassGraph, some_edges

RELATIONS = ("same_supercategory", "co_occurs")


def derive_class_graph(dataset: RegionDataset, refuse: bool = True) -> ClassGraph:
    """A graph for a data set that brings none, from its annotations alone; no image is opened.

    - ``same_supercategory``: both ways between any two classes of one (named) supercategory, weight 1; a supercategory
      of all classes is none;
    - ``co_occurs``: weight P(an image of dst also has src), counted over images; absent where never.

    No self-loops; edges sorted by (src, dst). InputError where that gives no edge, if `refuse`. Derive it from training
    data only.
    """
    count = len(dataset.classes)
    groups = np.array(dataset.supercategories, dtype=object)
    for group in set(dataset.supercategories):
        # Ties of all to all say nothing. Roboflow names its project so, as every class's group and as one more class.
        if all(own_group == group or name == group for name, own_group in zip(dataset.classes, groups, strict=True)):
            groups[groups == group] = ""
    same = (groups[:, None] == groups[None, :]) & (groups != "")[:, None]
    together = np.zeros((count, count), dtype=np.int64)  # images that have both; the diagonal, images that have one
    for labels in dataset.image_labels():
        present = np.unique(labels.numpy())
        together[np.ix_(present, present)] += 1
    images = np.diagonal(together).copy()
    np.fill_diagonal(same, False)
    np.fill_diagonal(together, 0)
    src, dst = np.nonzero(together)
    edges = _as_tensors(*np.nonzero(same), np.ones(same.sum())), _as_tensors(src, dst, together[src, dst] / images[dst])
    graph = ClassGraph(list(dataset.classes), dict(zip(RELATIONS, edges, strict=True)))
    if refuse:
        some_edges(graph)
    return graph


def _as_tensors(src: np.ndarray, dst: np.ndarray, weight: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    return torch.from_numpy(src.copy()), torch.from_numpy(dst.copy()), torch.from_numpy(weight.astype(np.float32))
