"""The average of the weights: its formula, what is evaluated and saved, and runs that go on to the same bits."""

import itertools
import json
import signal

import pytest
import torch

from irnet.cli import main
from irnet.engine import checkpoint, ema, evaluate, train
from irnet.engine.ema import Average, warmed
from irnet.engine.memory import Scene, measured, planned, planned_evaluation
from tests.engine.groups import Group
from tests.engine.test_memory import CLASSES, CPU, settings
from tests.engine.tools import DIE_WRITING, assert_same_run, assert_same_tensors, lines, logged

EMA = ("train.ema=0.9", "train.eval_every=3")


def drawn(dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.BatchNorm1d(5)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_average_is_the_formula(dtype):
    """average += (1 - decay) (weight - average), whose result, product and difference are rounded."""
    model, steps, decay = drawn(dtype), 40, 0.6
    model[1].weight.requires_grad_(False)
    average, generator = Average(model, decay), torch.Generator().manual_seed(1)
    expected = {name: p.detach().double().clone() for name, p in model.named_parameters() if p.requires_grad}
    decays = [min(decay, (1 + step) / (10 + step)) for step in range(1, steps + 1)]
    assert decays[0] == 2 / 11 and decays[-1] == decay and [warmed(decay, s) for s in range(1, steps + 1)] == decays
    for step, part in enumerate(decays, 1):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=generator).to(dtype))
        average.update(step)
        expected = {
            name: part * value + (1 - part) * dict(model.named_parameters())[name].detach().double()
            for name, value in expected.items()
        }
    assert average.weights.keys() == expected.keys() == {"0.weight", "0.bias", "1.bias"}
    largest = 2 * max(p.detach().abs().max() for p in model.parameters())
    for name, value in average.weights.items():
        assert value.dtype == dtype
        bound = 3 * torch.finfo(dtype).eps * largest / (1 - decay)  # the roundings of earlier steps decay, too
        torch.testing.assert_close(value.double(), expected[name], rtol=0, atol=float(bound))


def test_average_takes_the_place_of_the_weights_and_goes_again():
    model = drawn(torch.float32)
    average = Average(model, 0.5)
    with torch.no_grad():
        model[0].weight.add_(1)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    held = model[0].weight.data_ptr()
    average.exchange()
    torch.testing.assert_close(model[0].weight, before["0.weight"] - 1)
    assert model[0].weight.data_ptr() == held
    average.exchange()
    assert_same_tensors(model.state_dict(), before)
    assert torch.equal(average.weights["0.weight"], drawn(torch.float32)[0].weight)


@pytest.mark.parametrize("failing", [0, 1], ids=["before", "after"])
def test_exchange_that_fails_midway_is_not_saved(failing, train_arguments, refused, monkeypatch, tmp_path):
    """At the eleventh weight memory ends, before an evaluation or after it: the checkpoint of the step before stays."""
    exchanges, real = itertools.count(), Average.exchange

    def exchange(self):
        with monkeypatch.context() as within:
            if next(exchanges) == failing:
                weights = itertools.count()
                within.setattr(ema, "own_rows", lambda t: t if next(weights) < 20 else end_memory())
            real(self)

    def end_memory():
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Average, "exchange", exchange)
    words = train_arguments(tmp_path / "run", *EMA, "train.checkpoint_every=2", steps=7, batch=2)
    assert "(step 3 is lost: its weights were being changed)" in refused(words)
    assert checkpoint.find(tmp_path / "run").step == 2


def test_evaluation_that_fails_leaves_the_weights_as_they_were(train_arguments, refused, monkeypatch, tmp_path):
    def collect(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(evaluate, "collect", collect)
    words = ("train.ema=0.9", "train.cosine=false")
    stopped = refused(train_arguments(tmp_path / "run", *words, "train.eval_every=3", steps=7, batch=2))
    assert "step 3 is saved" in stopped
    monkeypatch.undo()
    assert main(train_arguments(tmp_path / "whole", *words, steps=3, batch=2)) == 0
    run, whole = (checkpoint.find(tmp_path / name) for name in ("run", "whole"))
    assert_same_tensors(run.model, whole.model)
    assert_same_tensors(run.trained, whole.trained)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory, train_arguments, irnet):
    """A run of seven steps with an average, and one without."""
    folder = tmp_path_factory.mktemp("averaged")
    irnet.run(train_arguments(folder / "run", *EMA, steps=7, batch=2))
    irnet.run(train_arguments(folder / "plain", EMA[1], steps=7, batch=2))
    return folder


def test_training_goes_as_without_an_average(averaged):
    run, plain = (checkpoint.find(averaged / name) for name in ("run", "plain"))
    assert lines(averaged / "run")[-1]["loss"] == lines(averaged / "plain")[-1]["loss"]
    assert_same_tensors(run.optimizer, plain.optimizer)
    assert_same_tensors(run.model | run.trained, plain.model)
    assert not plain.trained and set(run.trained) == {name.rpartition(".")[0] for name in run.optimizer}
    assert any(not torch.equal(run.model[name], t) for name, t in run.trained.items())


def test_what_is_saved_is_the_formula(averaged, train_arguments, monkeypatch, tmp_path):
    """In float64, from the weights after each step."""
    found, real = [], train.train_step

    def train_step(model, *more):
        if not found:
            found.append({name: p.detach().double() for name, p in model.named_parameters() if p.requires_grad})
        metrics = real(model, *more)
        part = min(0.9, (1 + len(found)) / (10 + len(found)))
        weights = dict(model.named_parameters())
        found.append({n: part * a + (1 - part) * weights[n].detach().double() for n, a in found[-1].items()})
        return metrics

    monkeypatch.setattr(train, "train_step", train_step)
    assert main(train_arguments(tmp_path / "run", *EMA, steps=7, batch=2)) == 0
    saved = checkpoint.find(tmp_path / "run")
    assert len(found) == 8 and found[-1].keys() == saved.trained.keys()
    for name, value in found[-1].items():
        room = 8 * 3 * torch.finfo(torch.float32).eps * float(value.abs().max() + 1)
        torch.testing.assert_close(saved.model[name].double(), value, rtol=0, atol=room)
    assert_same_tensors(saved.model, checkpoint.find(averaged / "run").model)


def test_evaluations_and_the_best_are_of_the_average(averaged, tmp_path, capsys):
    run, plain = (json.loads((averaged / name / "results.json").read_text()) for name in ("run", "plain"))
    assert run["metrics"] != plain["metrics"]
    words = ["eval", "--checkpoint", str(averaged / "run"), "-j", "0", "--output-dir", str(tmp_path)]
    assert main(words) == 0 and json.loads((tmp_path / "results.json").read_text()) == run
    best = checkpoint.find(averaged / "run", checkpoint.BEST)
    assert main([*words, "--best"]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["metrics"]["final"]["class_ap"] == best.extra["best"] and not best.trained


@pytest.mark.parametrize("more", [(), ("train.optimizer=sgd", "train.clip_norm=0")], ids=["adamw", "in backward"])
def test_killed_run_goes_on_to_the_same_bits(more, train_arguments, irnet, tmp_path):
    irnet.run(train_arguments(tmp_path / "whole", *EMA, *more, steps=7, batch=2))
    arguments = train_arguments(tmp_path / "run", *EMA, *more, "--resume", steps=7, batch=2)
    first = DIE_WRITING.format(name="last.safetensors", at=2)
    assert irnet.start(arguments, first).wait() == -signal.SIGKILL
    irnet.run(arguments)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    one, two = (checkpoint.find(tmp_path / name) for name in ("run", "whole"))
    assert one.trained and not one.trained.keys() - one.model.keys()
    assert_same_tensors(one.trained, two.trained)


def test_an_average_may_come_and_go(averaged, train_arguments, tmp_path):
    """Where it comes, it starts from the weights; where it goes, the run goes on from the weights, not from it."""
    words = ("--resume", str(averaged / "run"), "train.cosine=false", "train.lr=0")
    assert main(train_arguments(tmp_path / "without", *words, "train.ema=0", steps=8, batch=2)) == 0
    run, without = checkpoint.find(averaged / "run"), checkpoint.find(tmp_path / "without")
    assert_same_tensors(without.model, run.model | run.trained)
    assert not without.trained
    words = ("--resume", str(averaged / "plain"), "train.cosine=false", "train.lr=0", "train.ema=0.5")
    assert main(train_arguments(tmp_path / "with", *words, steps=8, batch=2)) == 0
    came = checkpoint.find(tmp_path / "with")
    assert_same_tensors(came.model, checkpoint.find(averaged / "plain").model)
    assert_same_tensors(came.model | came.trained, came.model)


def test_average_that_does_not_fit_is_refused(averaged, train_arguments, refused, tmp_path):
    saved = checkpoint.find(averaged / "run")
    name = next(iter(saved.trained))
    saved.model[name] = saved.model[name][:1]
    checkpoint.save(tmp_path / "bad.safetensors", saved)
    words = train_arguments(tmp_path / "run", *EMA, "--resume", tmp_path / "bad.safetensors", steps=8)
    refused(words, "bad.safetensors: holds an average that does not fit its weights")


@pytest.mark.parametrize("decay", ["1", "-0.1"])
def test_decay_out_of_bounds(decay, train_arguments, refused, tmp_path):
    refused(
        train_arguments(tmp_path / "run", f"train.ema={decay}"), f"train.ema is {float(decay)}; give a decay from 0"
    )


def test_a_plan_counts_the_average():
    config, scene = settings("local"), Scene(64, 64, (8, 2), CLASSES)
    before, within = planned(config, scene), planned_evaluation(config, scene, 1, training=True)
    config.train.ema = 0.999
    found = planned(config, scene)
    assert "average" not in before.bytes and found.total == before.total + found.bytes["average"]
    assert found.bytes["average"] == pytest.approx(found.bytes["parameters"], rel=0.02)  # which has buffers, too
    assert found.total == pytest.approx(measured(config, scene, CPU), rel=0.05)
    assert planned_evaluation(config, scene, 1, training=True).total == within.total + found.bytes["average"]
    assert "average" not in planned_evaluation(config, scene, 1).bytes


def test_all_processes_have_the_same_average(irnet, train_arguments, tmp_path):
    """Each evaluates its share of the images, and together they find what one process finds with the saved average."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    words = ("train.ema=0.9", "train.eval_every=2", "--tensorboard")
    Group(irnet, train_arguments(tmp_path / "run", *words, steps=3, batch=3), 2).end()
    irnet.run(["eval", "--checkpoint", tmp_path / "run", "--output-dir", tmp_path / "one"])
    assert (tmp_path / "one/results.json").read_text() == (tmp_path / "run/results.json").read_text()
    assert [line["step"] for line in logged(tmp_path / "run")] == [1, 2, 2, 3, 3]
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 1  # of rank 0
