"""Cases of the training suite: steps of the optimiser on images with random labels. Measures nothing.

The loss, autocast and the optimiser are the engine's own. All gradients are made before the update, as where they are
clipped; float16's loss scaling is left out.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from irnet.config import Config, TrainConfig
from irnet.engine.optim import make_optimizer
from irnet.engine.step import compute_loss
from irnet.models.irnet import IRNet

from ..case import Implementation, Setup, Work, case
from .model import ON_IMAGES, autocast_dtype, bind, build, implement, in_dtype_of, random_batch, share, slack, weights

AMP = {None: "off", torch.bfloat16: "bf16", torch.float16: "fp16"}


@case("training", **ON_IMAGES)
def train_step_local(setup: Setup) -> Work:
    """A training step of the local module and the backbone on images: loss, gradients, SGD with momentum."""
    return train_step(setup, "local")


@case("training", **ON_IMAGES)
def train_step_global(setup: Setup) -> Work:
    """A training step of the global module and the backbone on images: loss, gradients, SGD with momentum."""
    return train_step(setup, "global")


@case("training", **ON_IMAGES)
def train_step_full(setup: Setup) -> Work:
    """A training step of both modules and the backbone on images: loss, gradients, SGD with momentum."""
    return train_step(setup, "full")


def train_step(setup: Setup, variant: str) -> Work:
    """A case of a step: its call gives the loss, its update is the optimiser's."""
    model, batch = build(setup, variant), random_batch(setup)
    config = Config(model.config, train=TrainConfig(lr=0.0))  # every step is the same step, and costs what any costs

    def compute(model: IRNet) -> Tensor:
        train = replace(config.train, amp=AMP[autocast_dtype(setup, model)])
        return compute_loss(model, in_dtype_of(model, batch), replace(config, train=train)).total

    checkpointed = share(model)
    checkpointed.set_grad_checkpointing(True)
    ways = implement(setup, model, compute)
    ways["grad checkpointing"] = Implementation(bind(checkpointed, compute, keep=True))
    update = make_update(model, config.train)
    return Work(
        weights(model), ways, items=setup.images, unit="images", modes=("step",), update=update, slack=slack(setup)
    )


def make_update(model: IRNet, config: TrainConfig) -> Callable[[list[Tensor], tuple[Tensor, ...]], None]:
    """The engine's optimiser as a function that updates given weights in place by given gradients."""
    optimizer = make_optimizer(model, config)
    own = [p for p in model.parameters() if p.requires_grad]

    def update(inputs: list[Tensor], gradients: tuple[Tensor, ...]) -> None:
        for parameter, tensor, gradient in zip(own, inputs, gradients, strict=True):
            parameter.data, parameter.grad = tensor.detach(), gradient
        optimizer.step()
        optimizer.zero_grad()

    update(weights(model), tuple(torch.zeros_like(p) for p in own))  # makes the momentum, which a first step would
    return update
