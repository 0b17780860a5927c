"""CPU timings with a history, by pytest-benchmark: `make speed` keeps each run in .benchmarks and shows the change.

Every case of the kernels and model suites that the gate holds, in its small shape on one thread, so that it takes about
a minute. For figures to publish use `irnet bench`, which checks the results, too, and measures peers.
"""

import pytest
import torch

from irnet_bench.case import Case, Setup, Work, cases
from irnet_bench.measure import mode_call

CPU = torch.device("cpu")


def build(case: Case) -> Work:
    return case.build(Setup(case.shapes["gate"], torch.float32, CPU))


def entries() -> list:
    parameters = []
    for suite in ("kernels", "model"):
        for case in cases(suite):
            if not case.shapes["gate"]:
                continue
            for name, implementation in build(case).implementations.items():
                if not implementation.peer and implementation.call:
                    parameters.append(pytest.param(case, name, id=f"{case.name}-{name}"))
    return parameters


@pytest.mark.parametrize("mode", ["forward", "step"])
@pytest.mark.parametrize(("case", "name"), entries())
def test_speed(benchmark, case, name, mode):
    work = build(case)
    benchmark.group = f"{case.name} {mode}"
    call = mode_call(work, work.implementations[name], mode)
    call()
    benchmark(call)
