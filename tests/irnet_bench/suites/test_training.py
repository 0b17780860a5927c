"""The training suite: a step's update, and what grad checkpointing saves."""

import torch

from irnet.config import TrainConfig
from irnet_bench.case import Setup
from irnet_bench.measure import mode_call
from irnet_bench.suites import model, training
from irnet_kernels.counts import saved_bytes
from tests.irnet_bench.suites.networks import CPU, NETWORKS, build, each_training, run


@each_training
def test_a_step_updates_and_leaves_the_weights_as_they_are(name):
    work = build(name)
    del work.implementations["torch.compile"]  # takes seconds and has no step of its own
    before = [leaf.clone().view(torch.int32) for leaf in work.inputs]
    updates, real = [], work.update
    work.update = lambda inputs, gradients: (updates.append(gradients), real(inputs, gradients))
    for implementation in work.implementations.values():
        step = mode_call(work, implementation, "step")
        first, second = step(), step()
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(updates) == 2 * len(work.implementations) and work.modes == ("step",)
    assert all(torch.equal(leaf.view(torch.int32), old) for leaf, old in zip(work.inputs, before, strict=True))


def test_update_is_the_engines_sgd():
    net = model.build(Setup(NETWORKS["train_step_full"].shapes["gate"], torch.float32, CPU), "full")
    before = [weight.clone() for weight in model.weights(net)]
    update = training.make_update(net, TrainConfig(lr=0.25, momentum=0.5, weight_decay=0.125))
    leaves = [torch.full_like(weight, 2.0).requires_grad_() for weight in before]
    update(leaves, tuple(torch.full_like(weight, 3.0) for weight in before))
    for leaf, weight in zip(leaves, before, strict=True):
        decay = 0.125 if leaf.dim() > 1 else 0.0
        momentum = 0.5 * decay * weight + 3 + decay * 2  # the momentum was made by a gradient of zero
        torch.testing.assert_close(leaf.detach(), 2 - 0.25 * momentum)


@each_training
def test_grad_checkpointing_saves_less_for_the_same_gradients(name, monkeypatch):
    monkeypatch.setenv("IRNET_IMPL", "reference")  # both with the same kernels
    work = build(name, hidden=64, images=1)  # the gradients of several are added up in another order
    inputs = [leaf.detach().requires_grad_() for leaf in work.inputs]
    kept = {
        c: saved_bytes(lambda c=c: work.implementations[c].call(*inputs), inputs)
        for c in ("reference", "grad checkpointing")
    }
    assert kept["grad checkpointing"] < kept["reference"]
    for dtype in (torch.float64, torch.float32):  # one after the other: nothing of the first stays in the model
        same = zip(run(work, "grad checkpointing", dtype), run(work, "reference", dtype), strict=True)
        assert all(torch.equal(a, b) for a, b in same)
