"""The optimiser's parameter groups, the learning rate of every step, and gradients that go into the momentum."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..config import TrainConfig
from ..models.irnet import IRNet
from .distributed import is_sharded


def make_optimizer(model: IRNet, config: TrainConfig) -> Optimizer:
    """Make the optimiser of the model's parameters that are learned.

    Biases and other vectors are not decayed; the weights of the confidences learn `confidence_lr` times as fast. Each
    group's factor of the learning rate is its "initial_lr", which `make_scheduler` multiplies by the rate of the step.

    Args:
        model: Model on the device on which it is trained.
        config: Settings, of which `optimizer`, `lr`, `momentum`, `weight_decay` and `confidence_lr` are read.

    Returns:
        SGD with momentum, or AdamW. Every group's rate is `lr` until a scheduler sets it.
    """
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    confidence = [p for name, p in learned.items() if name.endswith("confidence.weight")]
    weights = [p for name, p in learned.items() if p.dim() > 1 and not name.endswith("confidence.weight")]
    biases = [p for p in learned.values() if p.dim() <= 1]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay, "initial_lr": 1.0},
        {"params": confidence, "weight_decay": config.weight_decay, "initial_lr": config.confidence_lr},
        {"params": biases, "weight_decay": 0.0, "initial_lr": 1.0},
    ]
    if config.optimizer == "sgd":  # whose fused kernel knows no DTensor
        fused = not any(map(is_sharded, learned.values()))
        return SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused, foreach=None if fused else False)
    return AdamW(groups, lr=config.lr, fused=True)


def make_scheduler(optimizer: Optimizer, config: TrainConfig, steps_done: int = 0) -> LambdaLR:
    """Make the scheduler, and set the learning rates of the step after `steps_done`.

    The rates follow from the number of steps alone, so no checkpoint holds the scheduler's state.

    Args:
        optimizer: Optimiser of `make_optimizer`.
        config: Settings, of which those that `learning_rate` reads are read.
        steps_done: Number of steps that earlier runs have done.

    Returns:
        The scheduler; its `step()` belongs after every step of the optimiser.
    """
    # A float16 loss scaler may leave the first step out. It counts all the same, and PyTorch would warn of it.
    warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)`", category=UserWarning)
    return LambdaLR(optimizer, lambda done: learning_rate(config, done + 1), last_epoch=steps_done - 1)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Compute the learning rate of a step, for a parameter group whose factor is 1.

    Args:
        config: Settings, of which `lr`, `warmup_steps`, `cosine`, `steps` and `lr_steps` are read.
        step: Number of the step, counted from 1.

    Returns:
        The rate after warm-up and decay.
    """
    rate = config.lr * min(1.0, step / (config.warmup_steps + 1))
    if config.cosine:
        return rate * 0.5 * (1 + math.cos(math.pi * (step - 1) / max(1, config.steps)))
    return rate * 0.1 ** sum(step > at for at in config.lr_steps)


BLOCK = 16 * 2**20  # bytes of a product that cannot be made in the momentum itself


def into_momentum(optimizer: Optimizer, begin: Callable[[], None]) -> Callable[[Tensor], "IntoMomentum | None"]:
    """Make the function that finds, for a parameter, what takes its gradient in parts (see `shared_linear.taken_by`).

    Args:
        optimizer: Of SGD with momentum and nothing else, parameters have one; of others none has.
        begin: Is called before a parameter's momentum changes.

    Returns:
        The function.
    """
    plain = {"dampening": 0, "nesterov": False, "maximize": False, "differentiable": False}
    group_of = {}
    for group in optimizer.param_groups if type(optimizer) is SGD else ():
        if group["momentum"] and plain.items() <= group.items():
            group_of |= {id(parameter): group for parameter in group["params"]}

    def find(parameter: Tensor) -> "IntoMomentum | None":
        group = group_of.get(id(parameter))
        return None if group is None else IntoMomentum(optimizer, group, parameter, begin)

    return find


class IntoMomentum:
    """Adds a gradient to the momentum of a parameter as its parts come, so that the gradient itself is never there.

    As SGD does, momentum = mu momentum + gradient + decay weight, and weight -= rate momentum; the additions come in
    another order, which is the same from run to run.
    """

    def __init__(self, optimizer: Optimizer, group: dict[str, Any], parameter: Tensor, begin: Callable[[], None]):
        self.state, self.group, self.parameter = optimizer.state[parameter], group, parameter
        self.begin, self.momentum = begin, None

    @torch.no_grad()
    def add(self, outputs: Tensor, inputs: Tensor) -> None:
        """Add the product of outputs' transpose and inputs."""
        factor = 1.0
        if self.momentum is None:
            self.begin()
            factor, self.momentum = self.group["momentum"], self.state.get("momentum_buffer")
            if self.momentum is None:
                self.momentum = self.state["momentum_buffer"] = torch.zeros_like(self.parameter)
        if outputs.dtype == self.momentum.dtype:
            self.momentum.addmm_(outputs.T, inputs, beta=factor)
            return
        rows = max(1, BLOCK // max(1, inputs.element_size() * inputs.shape[1]))
        for block, some in zip(self.momentum.split(rows), outputs.split(rows, 1), strict=True):
            block.mul_(factor).add_(some.T @ inputs)

    @torch.no_grad()
    def finish(self) -> None:
        """Update the parameter, if there was a gradient."""
        if self.momentum is not None:
            if self.group["weight_decay"]:
                self.momentum.add_(self.parameter, alpha=self.group["weight_decay"])
            self.parameter.add_(self.momentum, alpha=-self.group["lr"])
            self.momentum = None
