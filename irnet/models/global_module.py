"""The global module: reasoning over a graph of regions and classes. Knows nothing of images or losses."""

import contextlib
import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irnet_kernels import EdgeSet, propagate, propagate_regions, segment_matmul, segment_outer
from irnet_kernels.graph import REGION_TYPES
from irnet_kernels.modules import stacked_uniform
from irnet_kernels.numerics import autocast, autocasting

from ..config import ModelConfig
from .regions import Regions


class EdgeHooks(Protocol):
    """Sees what a layer's edges carry, and may change what arrives; engine/explain.py says what for."""

    def regions(self, states: Tensor, sums: Tensor) -> Tensor:
        """What regions receive over the edges between them: `sums` [R, D], made of their states [R, D], or other."""

    def classes(self, states: Tensor, sums: Tensor) -> Tensor:
        """What classes receive over the edges between them: `sums`, made of their `states`, or other; all [B, C, D]."""


class LayerWeights(NamedTuple):
    """What a layer does not take from images, made once for all roll-outs of a batch."""

    spatial: Tensor | None  # of the edge types between regions
    semantic: Tensor | None  # of the edge types between classes
    classes: Tensor | None  # [C, D], what each class takes from its own feature
    hooks: EdgeHooks | None = None


class GlobalState(NamedTuple):
    """The region states, and what every layer reads them with."""

    states: Tensor  # [R, D]
    weights: list[LayerWeights]


class GlobalModule(nn.Module):
    """Region states [R, D] and class features [C, D]; `logits_in` predictions of C classes enter the states.

    Of the paths that the settings switch off there are no weights, but the class graph is there whatever they say.
    """

    def __init__(
        self,
        config: ModelConfig,
        features: int,
        classes: int,
        logits_in: int,
        class_graph: EdgeSet,
        word_vectors: Tensor | None = None,
    ):
        super().__init__()
        d = config.graph_channels
        self.channels, self.assignment = d, config.assignment
        self.num_nodes, self.num_types = class_graph.num_nodes, class_graph.num_types
        for name, tensor in zip(EDGE_TENSORS, class_graph.tensors(), strict=True):
            self.register_buffer(name, tensor)
        # class features
        self.class_path = config.class_path
        if not config.class_path:
            self.class_features = None
        elif word_vectors is None:
            self.class_features = nn.Parameter(torch.randn(classes, d) / math.sqrt(d))
        else:
            self.register_buffer("word_vectors", word_vectors)
            self.class_projection = nn.Linear(word_vectors.shape[1], d)
        # write
        self.start_feature = None if config.region_start == "zero" else nn.Linear(features, d)
        self.map_feature = nn.Linear(features, d)
        self.map_logits = nn.Linear(logits_in * classes, d, bias=False)
        self.gru = nn.GRUCell(d, d)
        # read
        layers = config.graph_layers if config.spatial_edges or config.class_path else 0
        self.layers = nn.ModuleList(GraphLayer(config, class_graph.num_types) for _ in range(layers))
        self.classifier = nn.Linear(d, classes)
        self.confidence = nn.Linear(d, 1, bias=False) if config.attention == "learned" else None
        for module in filter(None, (self.map_feature, self.start_feature)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
        for module in filter(None, (self.map_logits, self.classifier, self.confidence)):
            nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    @property
    def class_graph(self) -> EdgeSet:
        """The class-class edges, on the module's device."""
        return EdgeSet(self.num_nodes, self.num_types, *(getattr(self, name) for name in EDGE_TENSORS))

    def weights(self) -> list[LayerWeights]:
        """The weights of every layer, made once for any number of roll-outs."""
        classes = self.class_projection(self.word_vectors) if hasattr(self, "word_vectors") else self.class_features
        return [layer.weights(classes) for layer in self.layers]

    def start(self, features: Tensor, regions: Regions, weights: list[LayerWeights]) -> GlobalState:
        """The state before the first iteration, from the ConvNet's features of the regions."""
        if self.start_feature is None:
            states = regions.feature.new_zeros(regions.feature.shape[0], self.channels)
        else:
            states = F.relu(self.start_feature(regions.feature))
        return GlobalState(states, weights)

    def first_read(self, state: GlobalState, regions: Regions) -> Tensor:
        """What the ConvNet's prediction is judged by: the first states. The paper leaves open what does."""
        return state.states

    def write(self, state: GlobalState, regions: Regions) -> GlobalState:
        """The state after every region has taken in its feature and its last predictions."""
        x = F.relu(self.map_feature(regions.feature) + self.map_logits(regions.logits.flatten(1)))
        return GlobalState(self.gru(x, state.states), state.weights)

    def read(self, state: GlobalState, regions: Regions) -> Tensor:
        """What each region learns from the others and from the classes: [R, D]."""
        x, p = state.states, self.assign(regions.logits) if self.class_path else None
        for layer, weights in zip(self.layers, state.weights, strict=True):
            x = x + layer(x, p, regions, self.class_graph, weights)
        return x

    def assign(self, logits: Tensor) -> Tensor:
        """How much each region belongs to each class, [R, C], by the modules' last predictions [R, M, C].

        The global module's own stand last.
        """
        modules = logits.shape[1]
        own = logits.sum(1) / modules if self.assignment == "mean" and modules > 1 else logits[:, -1]
        return own.softmax(1)


class GraphLayer(nn.Module):
    """One exchange: regions with regions, regions with classes, classes with classes, and back (paper, section 3.2)."""

    def __init__(self, config: ModelConfig, class_types: int):
        super().__init__()
        d, self.bandwidth, self.log_bandwidth, self.scale = config.graph_channels, config.bandwidth, None, None
        if config.learn_geometry and config.spatial_edges:
            self.log_bandwidth = nn.Parameter(torch.tensor(math.log(config.bandwidth)))  # its exponential is positive
            self.scale = nn.Parameter(torch.ones(len(REGION_TYPES)))
        self.spatial = self.semantic = None
        if config.spatial_edges:
            self.spatial = nn.Parameter(stacked_uniform(torch.empty(len(REGION_TYPES), d, d)))
        if config.class_path and config.class_edges:
            self.semantic = nn.Parameter(stacked_uniform(torch.empty(class_types, d, d)))
        if config.class_path:
            self.region_to_class = nn.Linear(d, d, bias=False)
            self.class_to_class = nn.Linear(d, d, bias=False)
            self.class_to_region = nn.Linear(d, d, bias=False)

    def weights(self, classes: Tensor | None) -> LayerWeights:
        """The weights of the edge types as the operators take them, and the projected class features [C, D]."""
        # A learned scale multiplies the spatial ones in full precision first.
        spatial = self.spatial if self.spatial is None or self.scale is not None else autocast(self.spatial)[0]
        semantic = None if self.semantic is None else autocast(self.semantic)[0]
        return LayerWeights(spatial, semantic, None if classes is None else self.class_to_class(classes))

    def forward(self, x: Tensor, p: Tensor | None, regions: Regions, graph: EdgeSet, weights: LayerWeights) -> Tensor:
        """x [R, D], p [R, C] (None without a class path) -> [R, D]; `weights` are the layer's own."""
        spatial = None if weights.spatial is None else self.from_regions(x, regions, weights.spatial, weights.hooks)
        if weights.classes is None or p is None:
            assert spatial is not None  # a layer has one path at least
            return F.relu(spatial)
        gathered = to_classes(p, self.region_to_class(x), regions.ptr)  # [B, C, D]
        z = F.relu(gathered + weights.classes)
        semantic = z if weights.semantic is None else propagate(z, graph, weights.semantic)  # [B, C, D]
        if weights.hooks is not None and weights.semantic is not None:
            semantic = weights.hooks.classes(z, semantic)
        from_classes = F.relu(self.class_to_region(to_regions(p, semantic, regions.ptr)))
        return from_classes if spatial is None else F.relu(spatial + from_classes)

    def from_regions(self, x: Tensor, regions: Regions, weight: Tensor, hooks: EdgeHooks | None) -> Tensor:
        """What each region hears from the others of its image: [R, D]."""
        bandwidth = self.bandwidth if self.log_bandwidth is None else self.log_bandwidth.exp()
        sums = propagate_regions(x, regions.boxes, regions.ptr, weight, bandwidth=bandwidth, scale=self.scale)
        return sums if hooks is None else hooks.regions(x, sums)


EDGE_TENSORS = (
    "graph_indptr",
    "graph_indices",
    "graph_values",
    "graph_t_indptr",
    "graph_t_indices",
    "graph_t_values",
)


def to_classes(p: Tensor, x: Tensor, ptr: Tensor) -> Tensor:
    """P' x with the rows of P' normalised, image by image: p [R, C], x [R, D] -> [B, C, D]; zero for empty images."""
    # Shares are taken in p's own dtype: probabilities of thousands of classes vanish in float16.
    device = p.device.type
    with torch.autocast(device, enabled=False) if autocasting(device) else contextlib.nullcontext():
        totals = segment_outer(p.new_ones(p.shape[0], 1), ptr, p)[:, 0].clamp(min=torch.finfo(p.dtype).tiny)  # [B, C]
    image = torch.repeat_interleave(ptr.diff(), output_size=p.shape[0])  # of every region
    return segment_outer((p / totals[image]).to(x.dtype), ptr, x)


def to_regions(p: Tensor, classes: Tensor, ptr: Tensor) -> Tensor:
    """P g, image by image: p [R, C], classes [B, C, D] -> [R, D]."""
    return segment_matmul(p.to(classes.dtype), ptr, classes)
