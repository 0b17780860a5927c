"""The optimiser's parameter groups, and rates that follow from the number of steps alone."""

import math
import warnings

import pytest
import torch
from torch import nn

from irnet.config import TrainConfig
from irnet.engine.optim import learning_rate, make_optimizer, make_scheduler

SCHEDULES = {
    "cosine": {"cosine": True, "steps": 9, "warmup_steps": 3},
    "steps": {"lr_steps": [2, 5], "warmup_steps": 0},
    "constant": {"lr_steps": [], "warmup_steps": 0},
    "no steps": {"cosine": True, "steps": 0},
}


class Model(nn.Module):
    """One parameter of each group, and one that is not learned."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
        self.confidence = nn.Linear(2, 1)
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_groups(name, kind):
    model = Model()
    config = TrainConfig(optimizer=name, lr=0.5, momentum=0.8, weight_decay=0.25, confidence_lr=3.0)
    optimizer = make_optimizer(model, config)
    assert type(optimizer) is kind
    expected = [
        ([model.weight], 0.25, 1.0),
        ([model.confidence.weight], 0.25, 3.0),
        ([model.bias, model.confidence.bias], 0.0, 1.0),
    ]
    for group, (parameters, decay, factor) in zip(optimizer.param_groups, expected, strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in parameters]
        assert (group["weight_decay"], group["initial_lr"], group["lr"]) == (decay, factor, 0.5)
        assert name == "adamw" or group["momentum"] == 0.8


@pytest.mark.parametrize("done", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_follow_from_the_number_of_steps_bit_for_bit(name, done):
    """A resumed run has the rates of one that was never stopped."""
    config = TrainConfig(lr=0.3, confidence_lr=3.7, **SCHEDULES[name])
    optimizer = make_optimizer(Model(), config)
    scheduler = make_scheduler(optimizer, config, done)
    for step in range(done + 1, done + 8):
        rate = learning_rate(config, step)
        assert [group["lr"] for group in optimizer.param_groups] == [rate, rate * 3.7, rate]
        assert scheduler.get_last_lr()[0] == rate
        optimizer.step()
        scheduler.step()


def test_warm_up_and_decay():
    config = TrainConfig(lr=8.0, warmup_steps=3, lr_steps=[5, 6])
    assert [learning_rate(config, step) for step in range(1, 8)] == pytest.approx([2, 4, 6, 8, 8, 0.8, 0.08])
    config = TrainConfig(lr=8.0, warmup_steps=0, cosine=True, steps=4)
    half = [8 * 0.5 * (1 + math.cos(math.pi * done / 4)) for done in range(4)]
    assert [learning_rate(config, step) for step in range(1, 5)] == pytest.approx(half)


def test_a_first_step_that_the_loss_scaler_leaves_out_counts_without_a_warning():
    model, config = Model(), TrainConfig(lr=0.3, warmup_steps=3)
    optimizer = make_optimizer(model, config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = make_scheduler(optimizer, config)
        scheduler.step()
    assert scheduler.get_last_lr()[0] == learning_rate(config, 2)
