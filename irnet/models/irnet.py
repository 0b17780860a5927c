"""The model: the roll-out of both modules on one screen. Layers live in backbone.py, local_module.py and
global_module.py."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from irnet_kernels import EdgeSet, crop_resize

from ..config import ModelConfig
from ..data.sample import Batch
from . import backbone
from .global_module import GlobalModule
from .local_module import LocalModule
from .predictions import CONV, PredictionKey, Predictions
from .regions import Regions

# What is made again together at the most, if it is not one image:
PIXELS = 600 * 1000  # of images, as many as one of the paper's size has
CHUNK = 64  # regions, of one image, too
NODES = 12_000  # classes with states of their own for each image, which then take as much as the ConvNet's maps


class IRNet(nn.Module):
    """Iterative visual reasoning: names the object in every box of every image.

    classes       C
    class_graph   `EdgeSet` over the C classes; needed by the variants "global" and "full"
    word_vectors  float [C, V], or None for learned class features
    trunk         a backbone of one's own in place of the one that `config` names; see backbone.py for its two parts
    """

    def __init__(
        self,
        config: ModelConfig,
        classes: int,
        class_graph: EdgeSet | None = None,
        word_vectors: Tensor | None = None,
        trunk: nn.Module | None = None,
    ):
        super().__init__()
        self.config = config
        self.grad_checkpointing = False
        self.backbone = backbone.build(config) if trunk is None else trunk
        widths = [self.backbone.feature_channels, *config.conv_head]
        self.conv_head = nn.Sequential()
        for pair in itertools.pairwise(widths):
            self.conv_head.extend([nn.Linear(*pair), nn.ReLU()])
        self.classifier = nn.Linear(widths[-1], classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        modules = {"conv": 0, "local": 1, "global": 1, "full": 2}[config.variant]
        self.local = self.graph = None
        modules = modules if config.cross_feed else min(modules, 1)
        if config.variant in ("local", "full"):
            self.local = LocalModule(config, self.backbone.channels, classes, modules)
        if config.variant in ("global", "full"):
            if class_graph is None:
                raise ValueError(f"the variant {config.variant!r} needs a class graph")
            features = self.backbone.feature_channels
            self.graph = GlobalModule(config, features, classes, modules, class_graph, word_vectors)

    def set_grad_checkpointing(self, on: bool) -> None:
        """Keep few activations for the backward pass and make the others again: less memory, more time.

        In training, images then go through the model one after the other, or several small ones together (`together`),
        and the patches of many regions in parts: what is made again is there of one such group, and of one part, at a
        time. Sums over images are made in this order.
        """
        self.grad_checkpointing = on

    @property
    def _makes_again(self) -> bool:
        return self.grad_checkpointing and self.training

    def forward(self, batch: Batch) -> Predictions:
        """Predict for images of any sizes. Images of one size go through the ConvNet and the memory together."""
        ptr = batch.ptr.tolist()
        rows, parts, weights = [], [], self.shared_weights()
        for members in self._groups(batch, ptr):
            regions = [r for b in members for r in range(ptr[b], ptr[b + 1])]
            counts = batch.ptr.new_tensor([0] + [ptr[b + 1] - ptr[b] for b in members])
            rows.append(batch.ptr.new_tensor(regions))
            images = [batch.images[b] for b in members]
            features = self._run(self.backbone, torch.stack(images) if len(images) > 1 else images[0][None])
            parts.append(self.reason(features, batch.boxes[rows[-1]], counts.cumsum(0), weights))
        return _merge(parts, torch.cat(rows).argsort())

    def _groups(self, batch: Batch, ptr: list[int]) -> list[list[int]]:
        """The positions of the images that go through the model together, which have one size."""
        shapes = [tuple(image.shape[1:]) for image in batch.images]
        if not self._makes_again:
            return [[b for b, other in enumerate(shapes) if other == shape] for shape in dict.fromkeys(shapes)]
        regions = [after - before for before, after in itertools.pairwise(ptr)]
        return together(shapes, regions, nodes_of(self.config, self.classifier.out_features))

    def shared_weights(self) -> dict[str, Any]:
        """By module, the weights that all roll-outs of a batch share."""
        return {name: module.weights() for name, module in self.reasoning_modules().items()}

    def reason(
        self, features: Tensor, boxes: Tensor, ptr: Tensor, weights: dict[str, Any] | None = None
    ) -> Predictions:
        """Roll out on feature maps [B, F, H, W] with boxes [R, 4] in image pixels and ptr [B + 1].

        weights  what `shared_weights` gives; None: of this roll-out alone
        """
        f0, regions = self.see(features, boxes, ptr)
        return self.roll_out(f0, features, regions, weights)

    def see(self, features: Tensor, boxes: Tensor, ptr: Tensor) -> tuple[Tensor, Regions]:
        """The ConvNet's logits [R, C], and what the modules are given of every region."""
        cells = boxes / backbone.STRIDE
        patches = crop_resize(features, cells, ptr, self.config.patch_size)  # [R, F, P, P]
        feature = self._feature(patches)  # [R, F']
        f0 = self.classifier(self.conv_head(feature))  # [R, C]
        # What enters the memories is detached: the ConvNet learns from its own prediction's loss alone.
        return f0, Regions(boxes, cells, ptr, patches.detach(), feature.detach(), f0.detach()[:, None])

    def roll_out(
        self, f0: Tensor, features: Tensor, regions: Regions, weights: dict[str, Any] | None = None
    ) -> Predictions:
        """What the modules make of what `see` gives; `weights` as of `reason`."""
        modules = self.reasoning_modules()
        if not modules:
            return Predictions({CONV: f0}, f0.new_ones(1, f0.shape[0]), f0.detach(), f0.new_zeros(1, f0.shape[0]), [])

        weights = weights or self.shared_weights()
        states = {name: [module.start(features, regions, weights[name])] for name, module in modules.items()}
        logits, confidences = {CONV: f0}, {}
        first, judge = next(iter(modules.items()))
        if judge.confidence is not None:
            confidences[CONV] = judge.confidence(self._read(judge, states[first][0], regions, judge.first_read))
        last = dict.fromkeys(modules, f0)
        for i in range(1, self.config.iterations + 1):
            predictions = {name: f.detach() for name, f in last.items()}
            both = regions._replace(logits=torch.stack(list(predictions.values()), 1))  # [R, M, C]
            for name, module in modules.items():
                fed = both if self.config.cross_feed else regions._replace(logits=predictions[name][:, None])
                states[name].append(self._write(module, states[name][-1], fed))
                read = self._read(module, states[name][-1], fed, module.read)  # [R, hidden] or [R, D]
                key = PredictionKey(name, i)
                logits[key] = last[name] = module.classifier(read)  # [R, C]
                if module.confidence is not None:
                    confidences[key] = module.confidence(read)  # [R, 1]
        memories = [state.memory for state in states.get("local", [])]
        if not confidences:
            return _mix(logits, memories, self.config.attention == "last")
        return _attend(logits, confidences, memories)

    def reasoning_modules(self) -> dict[str, LocalModule | GlobalModule]:
        """The modules that this variant has, in the order of their predictions."""
        modules = {"local": self.local, "global": self.graph}
        return {name: module for name, module in modules.items() if module is not None}

    def _run(self, part: Callable[..., Any], *arguments: Any) -> Any:
        return checkpoint(part, *arguments, use_reentrant=False) if self._makes_again else part(*arguments)

    def _feature(self, patches: Tensor) -> Tensor:
        parts = patches.split(CHUNK) if self._makes_again else [patches]
        features = [self._run(self.backbone.head, part) for part in parts]
        return torch.cat(features) if len(features) > 1 else features[0]

    def _write(self, module: nn.Module, state: Any, regions: Regions) -> Any:
        if not self._in_parts(module, regions):
            return self._run(module.write, state, regions)
        changes = [self._run(module.changes, state, part) for part in regions.split(CHUNK)]
        return module.paste(state, torch.cat(changes), regions)

    def _read(self, module: nn.Module, state: Any, regions: Regions, read: Callable[..., Tensor]) -> Tensor:
        if not self._in_parts(module, regions):
            return self._run(read, state, regions)
        # Of the module that works on patches the first read is one like any other.
        contexts = self._run(module.contexts, state)
        return torch.cat([self._run(module.look, state, contexts, part) for part in regions.split(CHUNK)])

    def _in_parts(self, module: nn.Module, regions: Regions) -> bool:
        """Whether the module works on patches, and they are so many that not all are made again together."""
        return module is self.local and self._makes_again and len(regions.boxes) > CHUNK


def nodes_of(config: ModelConfig, classes: int) -> int:
    """How many classes have a state of their own for every image: those of a global module with a class path."""
    return classes if config.variant in ("global", "full") and config.class_path else 0


def together(shapes: list[tuple[int, ...]], regions: list[int], nodes: int) -> list[list[int]]:
    """Groups of images that are made again together.

    Args:
        shapes: Of every image, (H, W).
        regions: Their numbers, for every image.
        nodes: Classes that have a state of their own for every image.

    Returns:
        Positions of images of one size, in rising order, with at most PIXELS, CHUNK regions and NODES; or one image.
    """
    groups: list[list[int]] = []
    open_groups: dict[tuple[int, ...], list[int]] = {}
    for b, shape in enumerate(shapes):
        group = open_groups.get(shape, [])
        images, more = len(group) + 1, sum(regions[i] for i in group) + regions[b]
        if not group or images * math.prod(shape) > PIXELS or more > CHUNK or images * nodes > NODES:
            group = open_groups[shape] = []
            groups.append(group)
        group.append(b)
    return groups


def _attend(
    logits: dict[PredictionKey, Tensor], confidences: dict[PredictionKey, Tensor], memories: list[Tensor]
) -> Predictions:
    """Mix the final prediction of all others, each weighed by its confidence [R, 1] among theirs."""
    logits = {key: logits[key] for key in sorted(logits)}
    confidence = torch.cat([confidences[key] for key in logits], 1).T  # [K, R]
    attention = confidence.softmax(0, torch.promote_types(confidence.dtype, torch.float32))  # [K, R]
    return Predictions(logits, attention, _weighed(logits, attention), confidence, memories)


def _mix(logits: dict[PredictionKey, Tensor], memories: list[Tensor], last_alone: bool) -> Predictions:
    """Mix the final prediction of all others evenly, or of those of the last iteration, without confidences."""
    logits = {key: logits[key] for key in sorted(logits)}
    last = max(key.iteration for key in logits)
    chosen = [not last_alone or key.iteration == last for key in logits]
    f0 = logits[CONV]
    weights = torch.tensor(chosen, device=f0.device).to(torch.promote_types(f0.dtype, torch.float32)) / sum(chosen)
    attention = weights[:, None].expand(-1, f0.shape[0])  # [K, R]
    return Predictions(logits, attention, _weighed(logits, attention), torch.zeros_like(attention), memories)


def _weighed(logits: dict[PredictionKey, Tensor], attention: Tensor) -> Tensor:
    """The sum of the predictions [R, C], detached, each times its row of the attention [K, R]."""
    return sum(w[:, None] * f.detach() for w, f in zip(attention, logits.values(), strict=True))


def _merge(parts: list[Predictions], order: Tensor) -> Predictions:
    """Put the predictions of groups back into the batch's order of regions."""
    if len(parts) == 1:
        return parts[0]
    return Predictions(
        {key: torch.cat([p.logits[key] for p in parts])[order] for key in parts[0].logits},
        torch.cat([p.attention for p in parts], 1)[:, order],
        torch.cat([p.final for p in parts])[order],
        torch.cat([p.confidences for p in parts], 1)[:, order],
        [],
    )
