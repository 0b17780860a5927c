"""The optimiser's parameter groups, and the learning rate of every step."""

import math
import warnings

from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..config import TrainConfig
from ..models.irnet import IRNet


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
    if config.optimizer == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
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
