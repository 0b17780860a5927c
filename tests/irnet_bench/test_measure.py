"""Measuring one case: correctness before speed, statuses that tell the truth."""

import pytest
import torch

from irnet_bench.case import Case, Implementation, Setup, Work
from irnet_bench.measure import Settings, examine, measure, mode_call

MIB = 2**20

SIZE = MIB // 4  # float32 numbers in a mebibyte


def double(x):
    return x + x


def a_case(modes=("forward", "backward", "step"), **others) -> Case:
    """y = 2 x on a mebibyte, with further implementations; a call is a peer's."""

    def build(s: Setup) -> Work:
        implementations = {"reference": Implementation(double)}
        for name, call in others.items():
            implementations[name] = call if isinstance(call, Implementation) else Implementation(call, peer=True)
        return Work([s.normal(s.size)], implementations, {"forward": 2 * MIB}, {"forward": SIZE}, modes=modes)

    return Case("kernels", "double", build, {"cpu": {"size": SIZE}}, {})


def results(cpu, dtype="float32", modes=("forward", "backward", "step"), **others):
    return measure(a_case(**others), {"size": SIZE}, dtype, cpu, Settings(modes, seconds=0.01))


def test_a_right_implementation_has_every_figure(cpu):
    found = results(cpu, other=lambda x: x * 2)
    assert {(name, mode) for name, mode in found} == {
        (name, mode) for name in ("reference", "other") for mode in ("forward", "backward", "step")
    }
    for (name, mode), result in found.items():
        assert result.status == "ok", (name, mode, result.reason)
        assert len(result.figures["samples"]) >= 5
        assert result.figures["percentiles"]["20"] <= result.figures["percentiles"]["50"]
        assert result.figures["clock"] == "wall"
        assert result.figures["error"] <= result.figures["budget"]
        assert ("first_call_seconds" in result.figures) == (name == "other" and mode != "backward")
    assert found["reference", "forward"].figures["peak_allocated_bytes"] == MIB
    assert found["reference", "forward"].figures["fewest_bytes"] == 2 * MIB
    assert found["reference", "step"].figures["saved_bytes"] == 0
    assert not found["reference", "forward"].peer and found["other", "forward"].peer


def one_wrong(x):
    y = x * 2
    return y + torch.nn.functional.one_hot(torch.tensor(3), len(y)) * 1e-3


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        grad = grad * 2
        grad[5] += 1e-3
        return grad


def test_a_wrong_element_of_the_result_leaves_no_speed(cpu):
    found = results(cpu, wrong=one_wrong)
    for mode in ("forward", "step"):
        assert found["wrong", mode].status == "error"
        assert "wrong: the result is off by" in found["wrong", mode].reason
        assert not {"samples", "percentiles", "peak_allocated_bytes"} & set(found["wrong", mode].figures)
        assert found["wrong", mode].figures["error"] > found["wrong", mode].figures["budget"]
    assert found["wrong", "backward"].status == found["reference", "forward"].status == "ok"


def test_a_wrong_gradient_leaves_no_speed(cpu):
    found = results(cpu, wrong=WrongGradient.apply)
    assert found["wrong", "forward"].status == "ok"
    assert "gradient 0" in found["wrong", "backward"].reason
    assert "samples" not in found["wrong", "backward"].figures
    assert found["wrong", "step"].status == "error"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_result_that_is_not_finite_is_wrong(cpu, bad):
    found = results(cpu, wrong=lambda x: x * 2 * bad)
    assert found["wrong", "forward"].status == "error"
    assert "not finite" in found["wrong", "forward"].reason


def test_memory_that_was_never_written_is_seen(cpu):
    def forgetful(x):
        y = torch.empty_like(x)
        y[:-1] = x[:-1] * 2
        return y

    found = results(cpu, modes=("forward",), forgetful=Implementation(forgetful))
    assert "not finite" in found["forgetful", "forward"].reason


def test_what_is_only_wrong_in_ordinary_runs_is_seen(cpu):
    """Judging with poisoned memory turns PyTorch's deterministic mode on, in which operators take other ways."""

    def sometimes(x):
        return x * (2 if torch.are_deterministic_algorithms_enabled() else 3)

    found = results(cpu, modes=("forward",), sometimes=Implementation(sometimes))
    assert found["sometimes", "forward"].status == "error"


@pytest.mark.parametrize("limit", [4, 5])
def test_an_implementation_that_fails_only_when_it_is_timed_ends_no_run(cpu, limit):
    calls = 0

    def tired(x):
        nonlocal calls
        calls += 1
        if calls > limit:
            raise MemoryError("no more")
        return x * 2

    found = results(cpu, modes=("forward",), tired=Implementation(tired, peer=True))
    assert found["tired", "forward"].status == "oom"
    assert "samples" not in found["tired", "forward"].figures


def test_the_wrong_dtype_is_an_error(cpu):
    found = results(cpu, modes=("forward",), wide=lambda x: x.double() * 2)
    assert found["wide", "forward"].status == "error"
    assert "float64" in found["wide", "forward"].reason


def test_an_unchecked_peer_has_no_error_figure(cpu):
    found = results(cpu, modes=("forward",), loose=Implementation(lambda x: x * 3, peer=True, checked=False))
    assert found["loose", "forward"].status == "ok"
    assert "error" not in found["loose", "forward"].figures


def test_failures_are_told_apart_and_the_others_go_on(cpu):
    def broken(x):
        raise KeyError("gone")

    def announced(x):
        raise RuntimeError("it raised:\n\nthe cause\nand where")

    missing = Implementation(None, peer=True, missing="x is not installed: pip install x")
    others = {"big": lambda x: x.new_zeros(2**50), "broken": broken, "announced": announced, "absent": missing}
    found = results(cpu, modes=("forward",), **others)
    assert found["big", "forward"].status == "oom" and "allocate" in found["big", "forward"].reason
    assert found["broken", "forward"].reason == "KeyError: 'gone'"
    assert found["announced", "forward"].reason == "RuntimeError: it raised: the cause"
    assert found["absent", "forward"].status == "skipped"
    assert found["absent", "forward"].reason == "x is not installed: pip install x"
    assert found["reference", "forward"].status == "ok"
    for name in ("big", "broken", "absent"):
        assert "samples" not in found[name, "forward"].figures


def test_no_implementation_is_judged_without_a_truth(cpu):
    def build(s):
        def reference(x):
            raise MemoryError("too small a machine")

        return Work([s.normal(4)], {"reference": Implementation(reference), "other": Implementation(double, True)})

    case = Case("kernels", "double", build, {}, {})
    found = measure(case, {}, "float32", cpu, Settings(("forward",)))
    assert {r.status for r in found.values()} == {"oom"}
    assert "no truth" in found["other", "forward"].reason


def test_a_set_up_that_fails_is_a_result(cpu):
    def build(s):
        raise ValueError("no such shape")

    found = measure(Case("kernels", "double", build, {}, {}), {}, "float32", cpu)
    assert {r.status for r in found.values()} == {"error"}
    assert all(r.reason == "set-up: ValueError: no such shape" for r in found.values())


def test_implementations_can_be_left_out(cpu):
    case = a_case(other=double, another=double)
    found = measure(case, {"size": 8}, "float32", cpu, Settings(("forward",), seconds=0, without="other"))
    assert set(found) == {("reference", "forward")}
    found = measure(case, {"size": 8}, "float32", cpu, Settings(("forward",), seconds=0, without="re"))
    assert len(found) == 3, "the reference is the truth"


def test_where_time_is_short_the_reference_is_only_the_truth(cpu):
    def build(s):
        calls = {"reference": (double, False), "cpp": (double, False), "plain": (double, True), "other": (double, True)}
        return Work([s.normal(s.size)], {n: Implementation(c, peer=p) for n, (c, p) in calls.items()}, baseline="plain")

    case = Case("kernels", "double", build, {}, {})
    found = measure(case, {"size": 8}, "float32", cpu, Settings(("forward",), seconds=0, baseline_only=True))
    assert set(found) == {("cpp", "forward"), ("plain", "forward")}
    assert all(r.status == "ok" and r.figures["error"] is not None and r.figures["samples"] for r in found.values())


def test_without_leaves_only_equality_counts(cpu):
    def build(s):
        calls = {"reference": lambda: torch.arange(4), "same": lambda: torch.arange(4), "other": lambda: torch.ones(4)}
        return Work([], {name: Implementation(call) for name, call in calls.items()})

    found = measure(Case("data", "numbers", build, {}, {}), {}, "float32", cpu, Settings(seconds=0.01))
    assert set(found) == {("reference", "forward"), ("same", "forward"), ("other", "forward")}
    assert found["same", "forward"].status == "ok" and found["other", "forward"].status == "error"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_budget_of_a_low_precision_is_its_own(cpu, dtype):
    """An implementation that computes in float32 and rounds once is within the budget of any dtype."""
    name = str(dtype).removeprefix("torch.")
    found = results(cpu, name, modes=("forward",), exact=lambda x: (x.float() * 2).to(dtype), off=lambda x: x * 2.05)
    assert found["exact", "forward"].status == "ok"
    assert found["off", "forward"].status == "error"


def test_an_update_ends_every_step(cpu):
    seen = []
    case = a_case()
    work = case.build(Setup({"size": 8}, torch.float32, cpu))
    work.update = lambda inputs, gradients: seen.append((inputs[0].shape, gradients[0].shape))
    for mode, expected in (("forward", 0), ("backward", 0), ("step", 1)):
        mode_call(work, work.implementations["reference"], mode)()
        assert len(seen) == expected


def test_a_leaf_without_a_gradient_counts_as_zero(cpu):
    work = Work([torch.ones(3), torch.ones(3)], {"reference": Implementation(lambda x, y: x * 2 + 0 * y.detach())})
    found = examine(work, cpu)
    assert {r.status for r in found.values()} == {"ok"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
def test_on_a_gpu_every_mode_is_timed_by_a_graph():
    found = results(torch.device("cuda"), other=lambda x: x * 2, waits=lambda x: x * 2 * int(x.numel() > x[0].item()))
    for (name, mode), result in found.items():
        assert result.status == "ok", (name, mode, result.reason)
        assert result.figures["clock"] == ("events" if name == "waits" and mode != "backward" else "graph"), (
            name,
            mode,
        )
        assert result.figures["launches"] > 0 and result.figures["peak_reserved_bytes"] is not None
        assert 0 < result.figures["percentiles"]["50"] < 0.1
