"""Why a region has its answer: the edges of the global module that its final prediction rests on. Draws nothing.

An edge is removed by setting its weight to 0 in all layers and iterations of the global module, for one image; the
others keep theirs. They are not divided by their new sum: that would strengthen all other messages of the row, and the
fall of the answer would be theirs, too. How much each region belongs to each class is no edge here: the predictions
decide that, anew in each iteration. What goes through classes goes over the edges between them, where there are any.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from irnet_kernels.graph import REGION_TYPES
from irnet_kernels.graph.reference import region_adjacency

from ..errors import InputError
from ..models.global_module import GraphLayer, LayerWeights
from ..models.irnet import IRNet
from ..models.regions import Regions

CANDIDATES = 16  # edges that are removed one by one, where there are more: those with the largest gradient times weight
CELLS = 32_768  # most cells of patches and maps, and rows of classes, of the roll-outs that are made together
DENSE = 8  # up to so many pairs of nodes for each edge, the gradients of all pairs cost less than those of the edges
EDGES = 16_384  # edges whose gradients are computed at once, where those of all pairs would cost more


@dataclass(frozen=True)
class Edge:
    """One edge of an image's graph, and what the answer of the region in question owes to it.

    Attributes:
        kind: "region" or "class": what it connects.
        type: "left", "right", "above", "below" or "overlap": where the source lies, seen from the target; of classes
            the name of the class graph's relation.
        source: The index of the region or class that is heard.
        target: The index of the region or class that hears it.
        source_name: The class of the source; of a region, the model's final answer for it.
        target_name: The same of the target.
        effect: By how much the logarithm of the final answer's probability falls when this edge alone is removed.
    """

    kind: str
    type: str
    source: int
    target: int
    source_name: str
    target_name: str
    effect: float


def edge_kinds(model: IRNet) -> tuple[str, ...]:
    """The kinds of edges that a model reasons over: of "region" and "class"; () without the global module."""
    graph = model.graph
    if graph is None:
        return ()
    layers = list(graph.layers)
    has = {"region": any(x.spatial is not None for x in layers), "class": any(x.semantic is not None for x in layers)}
    return tuple(kind for kind, present in has.items() if present)


def decisive_edges(
    model: IRNet,
    image: Tensor,
    boxes: Tensor,
    region: int,
    classes: Sequence[str] | None = None,
    relations: Sequence[str] | None = None,
    count: int = 3,
) -> list[Edge]:
    """Find the edges whose removal makes a region's final answer least likely.

    The gradient of the answer's log-probability to every edge's weight, times the weight, chooses 16 candidates
    (`count`, if that is more). Each is then removed alone, and the roll-out repeated on the same features of the
    ConvNet.

    Args:
        model: A model; it is put into evaluation mode. Variants without the global module have no edges: see
            `edge_kinds`.
        image: float [3, H, W], normalised, as `irnet.data.transforms.prepare` gives it.
        boxes: float32 [R, 4], (x1, y1, x2, y2) in its pixels.
        region: Index of the box in question, from 0.
        classes: Names of the model's C classes; None: their numbers.
        relations: Names of the class graph's relations, in their order; None: "relation 0" and so on.
        count: Most edges that are returned.

    Returns:
        At most `count` edges, the largest effect first, each with an effect above 0.

    Raises:
        InputError: There is no such region, names are of another number, or the model has diverged.
    """
    if not 0 <= region < len(boxes):
        raise InputError("region", f"there is no region {region} among {len(boxes)} boxes", "count from 0")
    study = EdgeStudy(model, image, boxes)
    names = _names("classes", classes, study.final.shape[1], "{}")
    types = _names("relations", relations, 0 if model.graph is None else model.graph.num_types, "relation {}")
    answers = study.final.argmax(1).tolist()
    edges = []
    for edge, effect in study.strongest_rows(region, count):
        of_region = edge.kind == "region"
        source, target = (names[answers[end] if of_region else end] for end in (edge.source, edge.target))
        edge_type = (REGION_TYPES if of_region else types)[edge.type]
        edges.append(Edge(edge.kind, edge_type, edge.source, edge.target, source, target, effect))
    return edges


def as_plain(edges: Sequence[Edge]) -> list[dict[str, Any]]:
    """Edges as values that JSON can hold, by the names of their attributes."""
    return [asdict(edge) for edge in edges]


class EdgeRow(NamedTuple):
    """One edge of `Edges`, as plain values."""

    kind: str
    type: int
    source: int
    target: int


class Edges(NamedTuple):
    """All edges of one image, those between regions first: [E] each, on the model's device."""

    of_classes: Tensor  # bool
    type: Tensor  # int64
    source: Tensor  # int64
    target: Tensor  # int64

    def row(self, index: int) -> EdgeRow:
        """Edge `index` as plain values."""
        of_classes, *ends = (int(values[index]) for values in self)
        return EdgeRow("class" if of_classes else "region", *ends)


class EdgeStudy:
    """One image's roll-out, to be made again without some of its edges, on the same features of the ConvNet.

    Attributes:
        edges: The E edges whose weight is not 0.
        conv: float64 [R, C], log-probabilities of the ConvNet's prediction.
        final: float64 [R, C], log-probabilities of the final one.
    """

    def __init__(self, model: IRNet, image: Tensor, boxes: Tensor):
        """Take an image and boxes as of `decisive_edges`; R may be 0."""
        self.model = model.eval()
        device = next(model.parameters()).device
        with torch.inference_mode(False), torch.no_grad():
            image, boxes = (x.to(device).clone() for x in (image, boxes))  # a copy is no inference tensor
            self.features = model.backbone(image[None])
            self.f0, self.regions = model.see(self.features, boxes, torch.tensor([0, len(boxes)], device=device))
            self.weights = model.shared_weights()
            self.edges, self.edge_weights = self._list_edges()
            final = model.roll_out(self.f0, self.features, self.regions, self.weights).final
            self.conv, self.final = (logits.double().log_softmax(1) for logits in (self.f0, final))
        if not self.final.isfinite().all():
            raise InputError("model", "its scores for the image are not finite", "train again with a lower train.lr")
        self.uses: list[_Use] = []
        self.graph: Tensor | None = None

    def strongest(self, region: int, count: int) -> tuple[Tensor, Tensor]:
        """At most `count` indices into `edges`, the largest effect first, and their effects, which are above 0."""
        candidates = self.first_order(region).topk(min(max(CANDIDATES, count), len(self.edges.type))).indices
        effects, order = self.effects(region, list(candidates[:, None])).sort(descending=True, stable=True)
        kept = slice(min(count, int((effects > 0).sum())))
        return candidates[order[kept]], effects[kept]

    def strongest_rows(self, region: int, count: int) -> list[tuple[EdgeRow, float]]:
        """What `strongest` gives, each edge with its effect as plain values."""
        indices, effects = self.strongest(region, count)
        return [(self.edges.row(i), effect) for i, effect in zip(indices.tolist(), effects.tolist(), strict=True)]

    def first_order(self, region: int) -> Tensor:
        """The gradient of the answer's log-probability to each edge's weight, times the weight: float64 [E].

        It goes through everything that the edges reach, also through predictions that training detaches.
        """
        answer = self.final[region].argmax()
        with torch.inference_mode(False), torch.enable_grad():
            if self.graph is None:
                weights = self._hooked(lambda layer: _Recorder(self, layer))
                with _Attached():
                    out = self.model.roll_out(self.f0, self.features, self.regions, weights).final
                self.graph = out.double().log_softmax(1)
            total = self.final.new_zeros(len(self.edges.type))
            if not self.uses or not len(total):
                return total
            offsets = [use.offset for use in self.uses]
            gradients = torch.autograd.grad(
                self.graph[region, answer], offsets, retain_graph=True, materialize_grads=True
            )
        for use, gradient in zip(self.uses, gradients, strict=True):
            total += self._carried(use, gradient).double() * self.edge_weights[use.layer]
        return total

    @torch.no_grad()
    def _carried(self, use: "_Use", gradient: Tensor) -> Tensor:
        """The gradient to the weights of all edges in one use, [E], which is 0 for those of the other kind."""
        states, gradient = use.states.detach().flatten(0, -2), gradient.flatten(0, -2)
        carried = states.new_zeros(len(self.edges.type))
        for edge_type, weight in enumerate(self.type_weights(use.layer, use.of_classes)):
            back = gradient @ weight.T
            rows = ((self.edges.of_classes == use.of_classes) & (self.edges.type == edge_type)).nonzero()[:, 0]
            target, source = self.edges.target[rows], self.edges.source[rows]
            if len(states) ** 2 <= DENSE * len(rows):
                carried[rows] = (back @ states.T)[target, source]
                continue
            for some in torch.arange(len(rows), device=rows.device).split(EDGES):
                carried[rows[some]] = (back[target[some]] * states[source[some]]).sum(1)
        return carried

    def type_weights(self, layer: int, of_classes: bool) -> Tensor:
        """What a layer multiplies the states with, by type of the edge: [T, D, D]."""
        weights: LayerWeights = self.weights["global"][layer]
        if of_classes:
            return weights.semantic
        scale = self.model.graph.layers[layer].scale
        return weights.spatial if scale is None else (weights.spatial * scale[:, None, None]).detach()

    def effects(self, region: int, removals: Sequence[Tensor]) -> Tensor:
        """By how much the log-probability of the answer falls without each set of edges: float64 [S].

        removals  S tensors of indices into `edges`
        """
        answer = self.final[region].argmax()
        return self.final[region, answer] - self.without(region, removals)[:, answer]

    @torch.no_grad()
    def without(self, region: int, removals: Sequence[Tensor]) -> Tensor:
        """The final log-probabilities of one region without each of S sets of edges: float64 [S, C]."""
        height, width = self.features.shape[2:]
        count, classes = self.final.shape
        size = self.model.config.patch_size
        together = max(CELLS // (count * size * size + classes + height * width), 1)
        log_probabilities = [self.final.new_zeros(0, classes)]
        with torch.inference_mode(False):
            for start in range(0, len(removals), together):
                removed = removals[start : start + together]
                copies = torch.arange(len(removed), device=self.f0.device)
                copy = copies.repeat_interleave(torch.tensor([len(edges) for edges in removed], device=copies.device))
                edges = torch.cat(list(removed))
                weights = self._hooked(lambda layer, copy=copy, edges=edges: _Remover(self, layer, copy, edges))
                final = self._roll_out(len(removed), weights)
                log_probabilities.append(final[copies * count + region].double().log_softmax(1))
        return torch.cat(log_probabilities)

    def _roll_out(self, copies: int, weights: dict[str, Any]) -> Tensor:
        """The final logits of as many copies of the image: [copies R, C]."""
        again = lambda x: x.repeat(copies, *[1] * (x.dim() - 1))  # noqa: E731
        one = self.regions
        ptr = torch.arange(copies + 1, device=one.ptr.device) * len(one.boxes)
        parts = (again(x) for x in (one.patches, one.feature, one.logits))
        regions = Regions(again(one.boxes), again(one.cells), ptr, *parts)
        features = self.features.expand(copies, -1, -1, -1)
        return self.model.roll_out(again(self.f0), features, regions, weights).final

    def _hooked(self, hooks_of: Callable[[int], Any]) -> dict[str, Any]:
        """The shared weights, with the hooks of each layer of the global module."""
        if self.model.graph is None:
            return self.weights
        layers = [w._replace(hooks=hooks_of(layer)) for layer, w in enumerate(self.weights["global"])]
        return {**self.weights, "global": layers}

    def _list_edges(self) -> tuple[Edges, list[Tensor]]:
        """The edges, and by layer their weights, float64 [E]."""
        kinds, graph = edge_kinds(self.model), self.model.graph
        none = torch.zeros(0, dtype=torch.int64, device=self.f0.device)
        between_regions, between_classes, adjacency, values = [none] * 3, [none] * 3, [], self.f0.new_zeros(0)
        if "region" in kinds:
            adjacency = [self._adjacency(layer) for layer in graph.layers]
            edge_type, target, source = sum(adjacency).nonzero().unbind(1)
            between_regions = [edge_type, source, target]
        if "class" in kinds:
            edges = graph.class_graph
            row = torch.arange(len(edges.indptr) - 1, device=none.device).repeat_interleave(edges.indptr.diff())
            kept = edges.values > 0
            row, source, values = row[kept], edges.indices[kept].long(), edges.values[kept]
            between_classes = [row // edges.num_nodes, source, row % edges.num_nodes]
        edge_type, source, target = between_regions
        none_of_layers = [values[:0] for _ in self.weights.get("global", [])]
        layers = [a[edge_type, target, source] for a in adjacency] or none_of_layers
        weights = [torch.cat([of_regions.double(), values.double()]) for of_regions in layers]
        of_classes = torch.arange(len(edge_type) + len(values), device=none.device) >= len(edge_type)
        parts = (torch.cat(pair) for pair in zip(between_regions, between_classes, strict=True))
        return Edges(of_classes, *parts), weights

    def _adjacency(self, layer: GraphLayer) -> Tensor:
        bandwidth = layer.bandwidth if layer.log_bandwidth is None else layer.log_bandwidth.exp()
        return region_adjacency(self.regions.boxes, bandwidth, torch.promote_types(self.f0.dtype, torch.float32))


class _Attached(TorchFunctionMode):
    """Tensor.detach detaches nothing: what must not learn in training is differentiated all the same."""

    def __torch_function__(self, function: Callable, types: Any, arguments: Any = (), options: Any = None) -> Any:
        return arguments[0] if function is Tensor.detach else function(*arguments, **(options or {}))


class _Use(NamedTuple):
    """One sum over the edges of one kind in a roll-out."""

    layer: int
    of_classes: bool
    states: Tensor  # [N, D] of the sources
    offset: Tensor  # like the sums: zeros that are added to them


class _Recorder:
    """Keeps what the sums of a layer are made of, and lets their gradients be asked for."""

    def __init__(self, study: EdgeStudy, layer: int):
        self.study, self.layer = study, layer

    def regions(self, states: Tensor, sums: Tensor) -> Tensor:
        return self._record(False, states, sums)

    def classes(self, states: Tensor, sums: Tensor) -> Tensor:
        return self._record(True, states, sums)

    def _record(self, of_classes: bool, states: Tensor, sums: Tensor) -> Tensor:
        offset = torch.zeros_like(sums, requires_grad=True)
        self.study.uses.append(_Use(self.layer, of_classes, states, offset))
        return sums + offset


class _Remover:
    """Takes the messages of removed edges away from the sums of a layer, in each of several copies of an image."""

    def __init__(self, study: EdgeStudy, layer: int, copy: Tensor, edges: Tensor):
        self.study, self.layer, self.copy, self.edges = study, layer, copy, edges

    def regions(self, states: Tensor, sums: Tensor) -> Tensor:
        return self._without(False, states, sums)

    def classes(self, states: Tensor, sums: Tensor) -> Tensor:
        return self._without(True, states.flatten(0, 1), sums.flatten(0, 1)).view_as(sums)

    def _without(self, of_classes: bool, states: Tensor, sums: Tensor) -> Tensor:
        edges, nodes = self.study.edges, self.study.final.shape[int(of_classes)]
        for edge_type, weight in enumerate(self.study.type_weights(self.layer, of_classes)):
            rows = (edges.of_classes[self.edges] == of_classes) & (edges.type[self.edges] == edge_type)
            chosen, first = self.edges[rows], self.copy[rows] * nodes
            by = self.study.edge_weights[self.layer][chosen].to(sums.dtype)[:, None]
            sums = sums.index_add(0, first + edges.target[chosen], states[first + edges.source[chosen]] @ weight * -by)
        return sums


def _names(what: str, given: Sequence[str] | None, count: int, number: str) -> list[str]:
    """The names that are given, or numbers as names."""
    if given is None:
        return [number.format(i) for i in range(count)]
    if len(given) != count:
        raise InputError(what, f"{len(given)} names for {count}", "give one name for each, in their order")
    return list(given)
