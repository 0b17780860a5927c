"""propagate, propagate_regions and the segment operators on random scenes.

IRNET_FUZZ is the number of cases (100), IRNET_FUZZ_SEED the first one's seed (0): see `make fuzz`.
"""

import os

import hypothesis
import pytest

from tests.kernels import graph_fuzz
from tests.kernels.helpers import AVAILABLE, DEVICES

CASES, SEED = int(os.environ.get("IRNET_FUZZ", 100)), int(os.environ.get("IRNET_FUZZ_SEED", 0))
each_operator = pytest.mark.parametrize(
    ("operator", "impl", "device"),
    [
        pytest.param(operator, impl, device, id=f"{operator}-{impl}-{device}")
        for operator in graph_fuzz.OPERATORS
        for device in DEVICES
        for impl in AVAILABLE[operator][device]
    ],
)
# NumPy's, where Triton's interpreter computes with infinite boxes, which is meant.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")


def cases(impl: str) -> int:
    """Triton's interpreter takes seconds for one, and its compiler for every new kind of arguments."""
    return -(-CASES // 20) if impl == "triton" else CASES


def interpreted(impl: str, device: str) -> bool:
    return impl == "triton" and device == "cpu"


@each_operator
def test_random_scenes(operator, impl, device):
    for seed in range(SEED, SEED + cases(impl)):
        try:
            graph_fuzz.check(graph_fuzz.random_scene(operator, seed, interpreted(impl, device)), impl, device)
        except Exception as error:
            test = os.environ["PYTEST_CURRENT_TEST"].split()[0]
            error.add_note(f"again: IRNET_FUZZ_SEED={seed} IRNET_FUZZ=1 python -m pytest '{test}'")
            raise


@each_operator
def test_drawn_scenes(operator, impl, device):
    """Hypothesis prints the smallest scene that fails; `graph_fuzz.check` makes it again."""

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=cases(impl),
        deadline=None,
        derandomize=False,
        database=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],  # it goes by the clock
    )
    @hypothesis.given(scene=graph_fuzz.scenes(operator, interpreted(impl, device)))
    def search(scene):
        graph_fuzz.check(scene, impl, device)

    search()
