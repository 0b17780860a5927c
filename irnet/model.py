"""The model: the roll-out of both modules on one screen. Layers live in backbone.py, local.py and graph.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from irnet_kernels import EdgeSet, crop_resize

from . import backbone
from .config import ModelConfig
from .data.sample import Batch
from .graph import GlobalModule
from .local import LocalModule


@dataclass
class Predictions:
    """What a roll-out says of R regions and C classes; steps are "conv", "local 1".."local I", "global 1".."global
    I"."""

    logits: dict[str, Tensor]  # name -> [R, C]
    attention: Tensor  # [K, R] in the order of `logits`; sums to 1 over K
    final: Tensor  # [R, C]
    confidences: Tensor  # [K, R]
    # the spatial memory before each read, [B, D, H, W]; empty without a local module and for images of several sizes
    memories: list[Tensor]


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
        self.classifier = nn.Linear(self.backbone.feature_channels, classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        modules = {"conv": 0, "local": 1, "global": 1, "full": 2}[config.variant]
        self.local = self.graph = None
        if config.variant in ("local", "full"):
            self.local = LocalModule(config, self.backbone.channels, classes, modules)
        if config.variant in ("global", "full"):
            if class_graph is None:
                raise ValueError(f"the variant {config.variant!r} needs a class graph")
            features = self.backbone.feature_channels
            self.graph = GlobalModule(config, features, classes, modules, class_graph, word_vectors)

    def set_grad_checkpointing(self, on: bool) -> None:
        """Keep fewer activations for the backward pass and make them again: less memory, more time."""
        self.grad_checkpointing = self.backbone.grad_checkpointing = on

    def forward(self, batch: Batch) -> Predictions:
        """Predict for images of any sizes. Images of one size go through the ConvNet and the memory together."""
        ptr = batch.ptr.tolist()
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(batch.images):
            groups.setdefault(tuple(image.shape[1:]), []).append(index)
        rows, parts = [], []
        for members in groups.values():
            regions = [r for b in members for r in range(ptr[b], ptr[b + 1])]
            counts = batch.ptr.new_tensor([0] + [ptr[b + 1] - ptr[b] for b in members])
            rows.append(batch.ptr.new_tensor(regions))
            features = self.backbone(torch.stack([batch.images[b] for b in members]))
            parts.append(self.reason(features, batch.boxes[rows[-1]], counts.cumsum(0)))
        return _merge(parts, torch.cat(rows).argsort())

    def reason(self, features: Tensor, boxes: Tensor, ptr: Tensor) -> Predictions:
        """Roll out on feature maps [B, F, H, W] with boxes [R, 4] in image pixels and ptr [B + 1]."""
        cells = boxes / backbone.STRIDE
        patches = crop_resize(features, cells, ptr, self.config.patch_size)  # [R, F, P, P]
        feature = self.backbone.head(patches)  # [R, F']
        f0 = self.classifier(feature)  # [R, C]
        logits = {"conv": f0}
        if self.local is None and self.graph is None:
            return Predictions(logits, f0.new_ones(1, f0.shape[0]), f0.detach(), f0.new_zeros(1, f0.shape[0]), [])

        # What enters the memories is detached: the ConvNet learns from its own prediction's loss alone.
        patches, feature = patches.detach(), feature.detach()
        confidences, memories, last = {}, [], {}
        if self.graph is not None:
            state = self.graph.start(feature)  # [R, D]
            last["global"] = f0
            edge_weights = self.graph.edge_weights()
            if self.local is None:  # the paper leaves open who judges f0 then; here the first states do
                confidences["conv"] = self.graph.confidence(state)
        if self.local is not None:
            images, _, height, width = features.shape
            memory = self.local.start(images, height, width)  # [B, D, H, W]
            memories.append(memory)
            confidences["conv"] = self.local.confidence(self._run(self.local.read, memory, cells, ptr))
            last["local"] = f0
            gru = self.local.gru_weights()

        for i in range(1, self.config.iterations + 1):
            seen = {module: last[module].detach() for module in sorted(last, reverse=True)}  # local before global
            both = torch.cat(list(seen.values()), 1)  # [R, C or 2C]
            if self.local is not None:
                memory = self._run(self.local.write, memory, patches, both, cells, ptr, gru)
                memories.append(memory)
                found = self._run(self.local.read, memory, cells, ptr)  # [R, hidden]
                logits[f"local {i}"] = last["local"] = self.local.classifier(found)
                confidences[f"local {i}"] = self.local.confidence(found)
            if self.graph is not None:
                state = self.graph.write(state, feature, both)
                found = self._run(self.graph.read, state, self._assignment(seen), boxes, ptr, edge_weights)  # [R, D]
                logits[f"global {i}"] = last["global"] = self.graph.classifier(found)
                confidences[f"global {i}"] = self.graph.confidence(found)

        logits = {name: logits[name] for name in sorted(logits, key=_order)}
        confidence = torch.cat([confidences[name] for name in logits], 1).T  # [K, R]
        attention = confidence.softmax(0, torch.promote_types(confidence.dtype, torch.float32))  # [K, R]
        final = sum(w[:, None] * f.detach() for w, f in zip(attention, logits.values(), strict=True))
        return Predictions(logits, attention, final, confidence, memories)

    def _run(self, step: Callable[..., Tensor], *arguments: Any) -> Tensor:
        if self.grad_checkpointing and self.training:
            return checkpoint(step, *arguments, use_reentrant=False)
        return step(*arguments)

    def _assignment(self, seen: dict[str, Tensor]) -> Tensor:
        """How much each region belongs to each class, [R, C]."""
        mean = self.config.assignment == "mean" and len(seen) > 1
        return (sum(seen.values()) / len(seen) if mean else seen["global"]).softmax(1)


def _order(name: str) -> tuple[int, int]:
    module, _, iteration = name.partition(" ")
    return ("conv", "local", "global").index(module), int(iteration or 0)


def _merge(parts: list[Predictions], order: Tensor) -> Predictions:
    """Put the predictions of groups back into the batch's order of regions."""
    if len(parts) == 1:
        return parts[0]
    return Predictions(
        {name: torch.cat([p.logits[name] for p in parts])[order] for name in parts[0].logits},
        torch.cat([p.attention for p in parts], 1)[:, order],
        torch.cat([p.final for p in parts])[order],
        torch.cat([p.confidences for p in parts], 1)[:, order],
        [],
    )
