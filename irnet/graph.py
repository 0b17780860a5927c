"""The global module: reasoning over a graph of regions and classes. Knows nothing of images or losses."""

import contextlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irnet_kernels import EdgeSet, propagate, propagate_regions, segment_matmul, segment_outer
from irnet_kernels.graph import REGION_TYPES
from irnet_kernels.numerics import autocast, autocasting

from .config import ModelConfig


class GlobalModule(nn.Module):
    """Region states [R, D] and class features [C, D]; `logits_in` predictions of C classes enter the states."""

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
        self.channels = d
        self.num_nodes, self.num_types = class_graph.num_nodes, class_graph.num_types
        for name, tensor in zip(EDGE_TENSORS, class_graph.tensors(), strict=True):
            self.register_buffer(name, tensor)
        # class features
        if word_vectors is None:
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
        self.layers = nn.ModuleList(GraphLayer(config, class_graph.num_types) for _ in range(config.graph_layers))
        self.classifier = nn.Linear(d, classes)
        self.confidence = nn.Linear(d, 1, bias=False)
        for module in filter(None, (self.map_feature, self.start_feature)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
        for module in (self.map_logits, self.classifier, self.confidence):
            nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    @property
    def class_graph(self) -> EdgeSet:
        """The class-class edges, on the module's device."""
        return EdgeSet(self.num_nodes, self.num_types, *(getattr(self, name) for name in EDGE_TENSORS))

    def start(self, feature: Tensor) -> Tensor:
        """Region states before the first iteration, [R, D], from the ConvNet's region features [R, F]."""
        if self.start_feature is None:
            return feature.new_zeros(feature.shape[0], self.channels)
        return F.relu(self.start_feature(feature))

    def write(self, state: Tensor, feature: Tensor, logits: Tensor) -> Tensor:
        """The states after every region has taken in its feature [R, F] and predictions [R, logits_in C]."""
        return self.gru(F.relu(self.map_feature(feature) + self.map_logits(logits)), state)

    def edge_weights(self) -> list[tuple[Tensor, Tensor]]:
        """Every layer's weights of edge types in the dtype of their products: cast once for a whole roll-out."""
        return [layer.edge_weights() for layer in self.layers]

    def read(
        self,
        state: Tensor,
        assignment: Tensor,
        boxes: Tensor,
        ptr: Tensor,
        weights: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """What each region learns from the others and from the classes: [R, D].

        `assignment` P [R, C] says how much each region belongs to each class, `boxes` are in image pixels, `weights`
        are what `edge_weights` gave; a roll-out asks for them once.
        """
        classes = self.class_projection(self.word_vectors) if hasattr(self, "word_vectors") else self.class_features
        for layer, own in zip(self.layers, weights or self.edge_weights(), strict=True):
            state = state + layer(state, classes, assignment, boxes, ptr, self.class_graph, own)
        return state


class GraphLayer(nn.Module):
    """One exchange: regions with regions, regions with classes, classes with classes, and back (paper, section 3.2)."""

    def __init__(self, config: ModelConfig, class_types: int):
        super().__init__()
        d, self.bandwidth, self.log_bandwidth, self.scale = config.graph_channels, config.bandwidth, None, None
        if config.learn_geometry:
            self.log_bandwidth = nn.Parameter(torch.tensor(math.log(config.bandwidth)))  # its exponential is positive
            self.scale = nn.Parameter(torch.ones(len(REGION_TYPES)))
        self.spatial = nn.Parameter(_uniform(len(REGION_TYPES), d, d, fan_in=len(REGION_TYPES) * d))
        self.semantic = nn.Parameter(_uniform(class_types, d, d, fan_in=class_types * d))
        self.region_to_class = nn.Linear(d, d, bias=False)
        self.class_to_class = nn.Linear(d, d, bias=False)
        self.class_to_region = nn.Linear(d, d, bias=False)

    def edge_weights(self) -> tuple[Tensor, Tensor]:
        """The weights of the spatial and the semantic edge types, as the operators take them."""
        if self.scale is not None:  # multiplied in full precision first
            return self.spatial, *autocast(self.semantic)
        return autocast(self.spatial, self.semantic)

    def forward(
        self,
        x: Tensor,
        classes: Tensor,
        p: Tensor,
        boxes: Tensor,
        ptr: Tensor,
        graph: EdgeSet,
        weights: tuple[Tensor, Tensor],
    ) -> Tensor:
        """x [R, D], classes [C, D], p [R, C] -> [R, D]; `weights` are `edge_weights`."""
        between_regions, between_classes = weights
        bandwidth = self.bandwidth if self.log_bandwidth is None else self.log_bandwidth.exp()
        spatial = propagate_regions(x, boxes, ptr, between_regions, bandwidth=bandwidth, scale=self.scale)
        gathered = to_classes(p, self.region_to_class(x), ptr)  # [B, C, D]
        z = F.relu(gathered + self.class_to_class(classes))
        semantic = propagate(z, graph, between_classes)  # [B, C, D]
        return F.relu(spatial + F.relu(self.class_to_region(to_regions(p, semantic, ptr))))


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


def _uniform(*shape: int, fan_in: int) -> Tensor:
    """He's uniform initialisation for stacked weights."""
    bound = math.sqrt(6 / fan_in)
    return torch.empty(shape).uniform_(-bound, bound)
