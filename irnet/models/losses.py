"""The training loss of one roll-out. Reads predictions and labels; holds no weights."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import LossConfig
from .predictions import CONV, PredictionKey, Predictions


@dataclass
class Loss:
    """The loss and its parts before lambda and mu, each a mean over the batch's images."""

    total: Tensor
    conv: Tensor
    modules: dict[str, Tensor]  # "local" and "global", where they run
    final: Tensor
    weights: dict[PredictionKey, Tensor]  # of every module's prediction, how much each of its regions weighs, [R]


def compute(predictions: Predictions, labels: Tensor, ptr: Tensor, config: LossConfig) -> Loss:
    """CE(f0) + lambda sum over modules of mean_i sum_r w_i(r) CE(f_i) + mu CE(final), averaged over images.

    labels  int64 [R]
    ptr     int64 [B + 1]
    Each image weighs 1 / B whatever its number of regions (images with none add zero), so accumulating gradients over
    parts of a batch gives the batch's step. w_i(r) is proportional to max(1 - p_{i-1}(r), beta), normalised over the
    image and detached; p is the probability of the true class at the module's previous iteration, the ConvNet's for i
    = 1.
    """
    counts = ptr[1:] - ptr[:-1]
    images = len(counts)
    image = torch.repeat_interleave(torch.arange(images, device=ptr.device), counts, output_size=len(labels))
    even = 1 / counts[image].to(_at_least_float32(predictions.final).dtype) / images

    def entropy(logits: Tensor) -> Tensor:
        return F.cross_entropy(_at_least_float32(logits), labels, reduction="none")

    conv = (entropy(predictions.logits[CONV]) * even).sum()
    total, modules, weights = conv, {}, {}
    for module in ("local", "global"):
        keys = [key for key in predictions.logits if key.module == module]
        previous = predictions.logits[CONV]
        parts = []
        for key in keys:
            logits = predictions.logits[key]
            weights[key] = hard_weights(previous, labels, image, images, config.beta)
            parts.append((entropy(logits) * weights[key]).sum() / images)
            previous = logits
        if parts:
            modules[module] = torch.stack(parts).mean()
            total = total + config.memory * modules[module]
    final = (entropy(predictions.final) * even).sum()
    if modules:
        total = total + config.final * final
    return Loss(total, conv, modules, final, weights)


def hard_weights(logits: Tensor, labels: Tensor, image: Tensor, images: int, beta: float) -> Tensor:
    """max(1 - p, beta) of the true class's probability, normalised over each image: [R], detached."""
    p = _at_least_float32(logits).detach().softmax(1).gather(1, labels[:, None])[:, 0]
    raw = (1 - p).clamp(min=beta)
    total = torch.zeros(images, dtype=raw.dtype, device=raw.device).index_add_(0, image, raw)
    return raw / total[image]


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
