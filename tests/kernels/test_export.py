"""Operators in other people's graphs: torch.export with any number of regions, TorchScript, torch.ops."""

import pytest
import torch
from torch import Tensor, nn

import irnet_kernels
from irnet_kernels import ConvGRUWeights, EdgeSet
from tests.kernels.helpers import box_grid, gru_weights, normal, ragged, random_edges

REGIONS = torch.export.Dim("regions")
# Constants of the programs: what is drawn while a program is traced is drawn anew when it runs.
GRU_WEIGHTS = ConvGRUWeights(*(weight.float() for weight in gru_weights(3, 1)))
CLASS_WEIGHT, REGION_WEIGHT = normal(2, 3, 4).float(), normal(5, 3, 4).float()
EDGES = EdgeSet.from_edges(random_edges(7, [12, 5]), 7)


def map_and_boxes(*counts: int) -> tuple[Tensor, Tensor, Tensor]:
    return normal(len(counts), 3, 6, 7).float(), box_grid(sum(counts), 6, seed=1), ragged(*counts)


def patches(*counts: int, channels: int = 3) -> Tensor:
    return normal(sum(counts), channels, 4, 4).float()


def rows(*counts: int, seed: int = 0) -> Tensor:
    return normal(sum(counts), 3, seed=seed).float()


def gru(inputs: Tensor, state: Tensor) -> Tensor:
    return irnet_kernels.conv_gru(inputs, state, GRU_WEIGHTS)


def regions(x: Tensor, boxes: Tensor, ptr: Tensor) -> Tensor:
    return irnet_kernels.propagate_regions(x, boxes, ptr, REGION_WEIGHT)


# Of every operator a call, its arguments for given numbers of regions, and which of them have a row for every region.
CALLS = {
    "crop_resize": (lambda f, b, p: irnet_kernels.crop_resize(f, b, p, 5), map_and_boxes, (1,)),
    "paste_mean": (
        lambda m, b, p, x: irnet_kernels.paste_mean(m, x, b, p),
        lambda *n: (*map_and_boxes(*n), patches(*n)),
        (1, 3),
    ),
    "conv_gru": (gru, lambda *n: (patches(*n), patches(*n) + 1), (0, 1)),
    "propagate": (lambda x: irnet_kernels.propagate(x, EDGES, CLASS_WEIGHT), lambda *n: (rows(7),), ()),
    "propagate_regions": (regions, lambda *n: (rows(*n), *map_and_boxes(*n)[1:]), (0, 1)),
    "segment_matmul": (
        irnet_kernels.segment_matmul,
        lambda *n: (rows(*n), ragged(*n), normal(len(n), 3, 4).float()),
        (0,),
    ),
    "segment_outer": (irnet_kernels.segment_outer, lambda *n: (rows(*n), ragged(*n), rows(*n, seed=1)), (0, 2)),
}
each_call = pytest.mark.parametrize(("call", "make", "dynamic"), CALLS.values(), ids=CALLS)


class Called(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.call(*arguments)


def test_every_operator_is_called():
    assert CALLS.keys() == irnet_kernels.available().keys()


@each_call
def test_an_exported_program_takes_any_number_of_regions(call, make, dynamic):
    arguments = make(4, 5)
    shapes = [{0: REGIONS} if index in dynamic else None for index in range(len(arguments))]
    program = torch.export.export(Called(call), arguments, dynamic_shapes={"arguments": tuple(shapes)}).module()
    for counts in ((4, 5), (2, 1), (60, 40)):
        arguments = make(*counts)
        assert torch.equal(program(*arguments), call(*arguments))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # shapes are checked once, while it is traced
@each_call
def test_a_traced_program_dispatches_by_device(call, make, dynamic):
    """TorchScript forgets which overload was called."""
    arguments = make(4, 5)
    traced = torch.jit.trace(Called(call), arguments)
    assert torch.equal(traced(*arguments), call(*arguments))


def test_an_operator_has_an_overload_without_a_name():
    features, boxes, ptr = map_and_boxes(4, 5)
    features.requires_grad_()
    got = torch.ops.irnet.crop_resize(features, boxes, ptr, size=5, border="zero")
    assert torch.equal(got, irnet_kernels.crop_resize(features, boxes, ptr, 5))
    assert torch.autograd.grad(got.sum(), features)[0].any()
    torch.library.opcheck(torch.ops.irnet.crop_resize.default, (features, boxes, ptr, 5, "zero"))
