"""An exponential moving average of a model's weights, and the model with it in their place. Knows nothing of runs.

torch.optim.swa_utils.AveragedModel would copy the whole model, with frozen and compiled parts and the class graph; this
keeps the learned weights alone.
"""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .sharded import like, own_rows


class Average:
    """The average of the weights that are learned, of which a frozen weight and a buffer are none.

    Attributes:
        weights: The average of each, by name; between two calls of `exchange`, the weights themselves.
    """

    def __init__(self, model: nn.Module, decay: float):
        """Start from the weights as they are.

        Args:
            model: Model on its device.
            decay: Part of the average that a step leaves, once `warmed` no longer lowers it.
        """
        self.decay = decay
        self.learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights = {name: p.detach().clone() for name, p in self.learned.items()}

    def update(self, step: int) -> None:
        """Take the weights after a step into the average.

        Args:
            step: Number of the step, counted from 1.
        """
        averages, weights = ([own_rows(w) for w in each.values()] for each in (self.weights, self.learned))
        get_ema_multi_avg_fn(warmed(self.decay, step))(averages, weights, None)

    @torch.no_grad()
    def exchange(self) -> None:
        """Give the model the average for its weights, or these back. No more memory is taken than the largest weight's.

        Where that is not there, some are exchanged and others are not.
        """
        for name, weight in self.learned.items():
            own, average = own_rows(weight), own_rows(self.weights[name])
            kept = own.clone()
            own.copy_(average)  # in place, for others may hold the same memory
            average.copy_(kept)

    @torch.no_grad()
    def restore(self, weights: dict[str, Tensor]) -> None:
        """Take over an earlier average, by the names of weights."""
        for name, average in self.weights.items():
            own_rows(average).copy_(own_rows(like(average, weights[name])))


def warmed(decay: float, step: int) -> float:
    """The decay of a step, counted from 1: lower at first, so that the initial weights are forgotten."""
    return min(decay, (1 + step) / (10 + step))
