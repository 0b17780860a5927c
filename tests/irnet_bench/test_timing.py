"""Clocks: percentiles, and who takes turns with whom."""

import functools
import time

import pytest

from irnet_bench import timing


def test_percentiles():
    assert timing.percentiles([5, 1, 2, 3, 4, 6]) == {"20": 2, "50": 3.5, "80": 5}
    assert timing.percentiles([7.0]) == {"20": 7, "50": 7, "80": 7}


class Machine:
    """Calls that take simulated seconds, more if another one was made before, and the clock that tells them."""

    def __init__(self, after_itself: float, after_another: float = 0.0):
        self.now, self.order = 0.0, ""
        self.after_itself, self.after_another = after_itself, after_another or after_itself

    def call(self, name: str):
        self.now += self.after_itself if self.order.endswith(name) else self.after_another
        self.order += name

    def time(self, **options):
        calls = {name: functools.partial(self.call, name) for name in "ab"}
        return timing.interleaved(calls, clock=lambda: self.now, **options)


def test_implementations_take_turns():
    machine = Machine(0.002)
    samples = machine.time(seconds=0, least=4, most=9)
    assert machine.order == "aabb" * 5  # two trials for the number of repeats; then a sample follows an untimed call
    assert samples == {name: pytest.approx([0.002] * 4) for name in "ab"}


def test_a_call_does_not_pay_for_its_neighbour():
    samples = Machine(0.002, 0.01).time(seconds=0, least=4, most=4)
    assert samples == {name: pytest.approx([0.002] * 4) for name in "ab"}


def test_a_long_call_is_made_for_its_samples_only():
    machine = Machine(0.06)
    machine.time(seconds=0, least=4, most=4)
    assert machine.order == "aabb" + "ab" * 4


def test_short_calls_are_repeated_within_a_sample():
    count = 0

    def call():
        nonlocal count
        count += 1

    samples = timing.interleaved({"a": call}, seconds=0, least=3, most=3)["a"]
    assert len(samples) == 3 and count > 100


def test_a_slow_implementation_does_not_keep_the_fast_from_their_samples():
    calls = {"fast": lambda: time.sleep(0.001), "slow": lambda: time.sleep(0.02)}
    samples = timing.interleaved(calls, seconds=0.05, least=2, most=50)
    assert len(samples["fast"]) > 2 * len(samples["slow"])
