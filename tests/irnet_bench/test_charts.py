"""Charts from made-up records: their points, places and marks."""

import itertools
import math

import pytest

from irnet_bench import charts
from tests.irnet_bench.made_up import PEERS, device, record


def test_points_of_a_roofline_are_what_was_reached():
    found = device(
        record(mode="forward"),
        record("paste_mean", mode="forward", fewest_flops=None),
        record("conv_gru", mode="forward", status="oom"),
        record("propagate", mode="forward", dtype="bfloat16"),
        record("reason_full", mode="forward", suite="model"),
    )
    points, matmul, copy = charts.points(found, "float32", "forward")
    assert points == [charts.Point("crop_resize", "cpp", 3.0, 3e10)] and (matmul, copy) == (1e11, 2e10)


@pytest.mark.parametrize("wanted", [[0.5], [0.0, 0.0, 1.0], [0.2] * 8, [0.1, 0.12, 0.5, 0.97, 0.99, 1.0]])
def test_names_over_a_roofline_never_touch(wanted):
    gap = 0.05
    placed = charts._spread(wanted, gap)
    assert all(b - a > gap - 1e-9 for a, b in itertools.pairwise(placed))
    assert all(gap / 2 - 1e-9 <= place <= 1 - gap / 2 + 1e-9 for place in placed)
    if all(b - a >= gap for a, b in itertools.pairwise(wanted)):
        assert placed == pytest.approx(wanted)  # nothing is moved without need


def test_names_that_are_pushed_aside_stay_around_their_place():
    assert charts._spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])


def test_labels_of_an_axis_keep_both_ends():
    assert charts._apart([1, 10, 50, 64, 100, 290, 300], math.log) == [1, 10, 50, 100, 300]
    assert charts._apart([1, 2, 4, 8], float) == [1, 2, 4, 8]


def test_every_implementation_looks_different(both):
    look = charts.styles(both)
    assert set(look) == {r.implementation for d in both for r in d.records}
    assert len(set(look.values())) == len(look)
    assert {name for name, (_, _, hollow) in look.items() if hollow} == set(PEERS)
