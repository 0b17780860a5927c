"""The memory of one of several processes: its share of a step, planned as memory.py plans the step of a single one."""

import math

import torch
from torch import Tensor, nn

from ..config import Config
from ..data.loader import batch_images
from .memory import Footprint, Scene, Step, planned, with_train
from .step import AMP_DTYPES, gradients, update


def planned_share(config: Config, scene: Scene, processes: int, gpu: bool = False) -> Footprint:
    """Plan the peak of a step in one of several processes.

    A share of a batch is by its work at most as much as an even number of the images with most work. What a library
    takes for the exchange itself is not known, and left out.

    Args:
        config: Settings of the run; `train.batch_size` is that of all processes.
        scene: What its images look like.
        processes: Their number.
        gpu: See `planned`.

    Returns:
        The peak. In a step of shared weights, "parameters" are a process's rows and, gathered, all.
    """
    kind = _Rows if config.train.parallel == "fsdp" else _Buckets
    return planned(config, scene, gpu, lambda *arguments: kind(*arguments, processes=processes))


def held_meanwhile(config: Config, footprint: Footprint, model: nn.Module, processes: int) -> int:
    """The bytes that a process holds in an evaluation beside what one of a single process takes that does not train.

    Args:
        config: Settings of the run.
        footprint: Plan of its step.
        model: Its model.
        processes: Their number.
    """
    if config.train.parallel == "fsdp":  # beside the gathered weights
        weights = sum(4 * math.prod(_rows(p, processes)) for p in model.parameters())
    else:
        weights = sum(p.nbytes for p in model.parameters() if p.requires_grad)  # the gradients' place
    return weights + footprint.bytes["optimizer"] + footprint.bytes.get("average", 0)


def share_of(config: Config, scene: Scene, processes: int) -> Config:
    """The settings with the largest share of one process as the batch, in full parts."""
    train = config.train
    images = -(-batch_images(train, scene.height, scene.width) // processes)
    micro = -(-images // train.grad_accum_steps)
    return with_train(config, batch_size=micro * train.grad_accum_steps, max_batch_pixels=0)


class _Buckets(Step):
    """The step of a process that has all weights: gradients have a place of their own all the time."""

    def __init__(self, config: Config, scene: Scene, gpu: bool, device: torch.device | None = None, *, processes: int):
        super().__init__(share_of(config, scene, processes), scene, gpu, device)
        self.kept_gradients = {p: torch.empty_like(p) for p in self.learned}
        for p in self.learned:
            p.register_post_accumulate_grad_hook(self._put_into_place)

    def _put_into_place(self, parameter: Tensor) -> None:
        parameter.grad = self.kept_gradients[parameter]

    def __call__(self) -> None:
        gradients(self.model, self.batch, self.optimizer, self.scaler, self.config, number=2)
        update(self.optimizer, self.scaler)
        self.optimizer.zero_grad()

    def present(self) -> dict[str, list[Tensor]]:
        return super().present() | {"gradients": list(self.kept_gradients.values())}


class _Rows(Step):
    """The step of a process that has some rows of every weight: it has all weights, and at the end all gradients."""

    def __init__(self, config: Config, scene: Scene, gpu: bool, device: torch.device | None = None, *, processes: int):
        super().__init__(share_of(config, scene, processes), scene, gpu, device)
        self.config = with_train(self.config, clip_norm=0.0)  # what is clipped are the rows, in their place
        parameters, dtype = list(self.model.parameters()), AMP_DTYPES.get(config.train.amp)
        self.rows = {p: nn.Parameter(torch.empty(_rows(p, processes)), p.requires_grad) for p in parameters}
        if self.average is not None:
            self.average.weights = {name: torch.empty_like(self.rows[p]) for name, p in self.average.learned.items()}
        for p in parameters if dtype else ():
            p.data = p.data.to(dtype)
        # Gradients of parts are added up in float32, and so are those of all processes.
        several = dtype is not None and self.config.train.grad_accum_steps > 1
        self.sums = [torch.empty(p.shape) for p in self.learned] if several else []
        copy = 4 * processes * sum(self.rows[p].numel() for p in self.learned)
        self.copy = max(0, copy - sum(p.nbytes for p in parameters))  # the gathered weights go before it comes
        for group in self.optimizer.param_groups:
            group["params"] = [self.rows[p] for p in group["params"]]
            if "momentum" in group:
                group["fused"] = group["foreach"] = False

    def __call__(self) -> None:
        gradients(self.model, self.batch, self.optimizer, self.scaler, self.config, number=2)
        copy = torch.empty(self.copy, dtype=torch.uint8)
        for p in self.learned:
            self.rows[p].grad = torch.empty_like(self.rows[p])
            p.grad = None
        del copy
        update(self.optimizer, self.scaler)
        self.optimizer.zero_grad()

    def fill_optimizer(self) -> None:
        learned, self.learned = self.learned, [self.rows[p] for p in self.learned]
        super().fill_optimizer()
        self.learned = learned

    def present(self) -> dict[str, list[Tensor]]:
        present = super().present()
        return present | {"parameters": [*self.rows.values(), *present["parameters"]], "gradients": self.sums}


def _rows(parameter: Tensor, processes: int) -> list[int]:
    """The shape of what each process holds of a weight."""
    return [-(-parameter.shape[0] // processes), *parameter.shape[1:]] if parameter.dim() else []
