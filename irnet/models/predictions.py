"""What a roll-out predicts: the key of every prediction, and all predictions of a batch together."""

from dataclasses import dataclass
from functools import total_ordering

from torch import Tensor

MODULES = ("conv", "local", "global", "final")  # in the order of their predictions


@total_ordering
@dataclass(frozen=True)
class PredictionKey:
    """The module that makes a prediction, and the iteration in which it does, from 1.

    The ConvNet's prediction and the final one belong to no iteration: theirs is 0. Keys sort in the order of a
    roll-out: conv, local 1 to local I, global 1 to global I, final. `str` gives the name in files and on pages.
    """

    module: str
    iteration: int = 0

    def __str__(self) -> str:
        return f"{self.module} {self.iteration}" if self.iteration else self.module

    def __lt__(self, other: "PredictionKey") -> bool:
        return (MODULES.index(self.module), self.iteration) < (MODULES.index(other.module), other.iteration)

    @classmethod
    def parse(cls, name: str) -> "PredictionKey":
        """The key whose `str` is `name`. ValueError where `name` is no prediction's."""
        module, _, iteration = name.partition(" ")
        key = cls(module, int(iteration) if iteration.isdecimal() else 0)
        if module not in MODULES or str(key) != name:
            raise ValueError(f"{name!r} is no prediction's name")
        return key


CONV, FINAL = PredictionKey("conv"), PredictionKey("final")


@dataclass
class Predictions:
    """All K predictions for R regions and C classes, and the final one that attention mixes of them."""

    logits: dict[PredictionKey, Tensor]  # [R, C] each, sorted by key
    attention: Tensor  # [K, R] in the order of `logits`; sums to 1 over K
    final: Tensor  # [R, C]
    confidences: Tensor  # [K, R]; zero where the attention is not learned
    # the spatial memory before each read, [B, D, H, W]; empty without a local module, and where images went through in
    # several groups (of several sizes, or checkpointed)
    memories: list[Tensor]

    def with_final(self) -> dict[PredictionKey, Tensor]:
        """The logits of the final prediction and, after it, of every other one."""
        return {FINAL: self.final, **self.logits}
