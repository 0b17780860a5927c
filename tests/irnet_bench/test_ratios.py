"""Ratios to a peer's time: what a take measures, and what its process says when it fails."""

import pytest
import torch

from irnet_bench import ratios
from irnet_bench.case import Job

# The peer sums a matrix 16 times as large, in the case's shape for the CPU; for the gate's all are the same size.
CASES = """
import os
from pathlib import Path
from irnet_bench.case import Implementation, Work, case

Path({log!r}).open("a").write(f"{{os.getpid()}} ")

@case("kernels", cpu={{"n": 256, "times": 4}}, gate={{"n": 256, "times": 1}})
def sums(s):
    x, large = s.normal(s.n, s.n), s.normal(s.n * s.times, s.n * s.times)
    own = Implementation(lambda x: x.sum())
    peer = Implementation(lambda x: x.sum() + large.sum(), peer=True)
    return Work([x], {{"reference": own, "cpp": own, "peer": peer}}, baseline="peer")

@case("kernels", cpu={{"n": 1}})
def broken(s):
    raise RuntimeError("no such map")
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "sums.py"
    path.write_text(CASES.format(log=str(tmp_path / "pids")))
    return path


def test_a_take_is_the_least_time_over_the_peers_at_the_devices_shape_and_a_process_of_its_own(file):
    jobs = [Job("sums", "cpp", "forward"), Job("sums", "peer", "forward")]
    takes = [ratios.take(jobs, torch.device("cpu"), [str(file)]) for _ in range(2)]
    for own, peer in (take.values() for take in takes):
        assert 0 < own < 0.5 < peer < 2
    assert list(takes[0]) == jobs
    assert len(set((file.parent / "pids").read_text().split())) == 2


def test_a_process_that_fails_says_why(file):
    with pytest.raises(RuntimeError, match=r"(?s)irnet_bench.ratios ended with 1:.*no such map"):
        ratios.take([Job("broken", "cpp")], torch.device("cpu"), [str(file)])
