"""Cases of the model and training suites as tests build them."""

import pytest
import torch
from torch import Tensor

from irnet_bench.case import Setup, Work, cases
from irnet_bench.measure import upstream

CPU = torch.device("cpu")

NETWORKS = {case.name: case for suite in ("model", "training") for case in cases(suite)}

DATA = {case.name: case for case in cases("data")}

FILES = {"images": 4, "batch": 3, "size": 160, "short": 0}

SMALL = {"load_batches": FILES, "scene_generation": {"images": 2, "size": 160}}

each_network = pytest.mark.parametrize("name", NETWORKS)

each_data = pytest.mark.parametrize("name", DATA)

each_training = pytest.mark.parametrize("name", [name for name, case in NETWORKS.items() if case.suite == "training"])


def build(name: str, dtype: torch.dtype = torch.float32, **shape: int) -> Work:
    case = (NETWORKS | DATA)[name]
    return case.build(Setup((SMALL.get(name) or case.shapes["gate"]) | shape, dtype, CPU))


def run(work: Work, implementation: str, dtype: torch.dtype) -> list[Tensor]:
    """The result and the gradient of every input."""
    inputs = [leaf.to(dtype).requires_grad_() for leaf in work.inputs]
    out = work.implementations[implementation].call(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream(out))]
