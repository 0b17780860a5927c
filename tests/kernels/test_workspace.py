"""Workspace: what operators allocate beside their results is what the formulas say, by PyTorch's own allocator."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from irnet_kernels import counts
from irnet_kernels.workspace import workspace
from tests.tools import WITH_FORMULAS

# oneDNN's own memory for each of two threads, and sums of biases, which the formulas leave out.
SLACK = 320 * 1024
pytestmark = WITH_FORMULAS


def check(operator, *arguments):
    made = operator(*arguments)
    results = sum(t.untyped_storage().nbytes() for t in tree_leaves(made) if isinstance(t, torch.Tensor))
    del made
    within = counts.count(lambda: operator(*arguments), torch.device("cpu")).peak_allocated_bytes - results
    assert abs(workspace(operator, arguments) - within) < max(SLACK, within / 20)


def patches(*shape, dtype=torch.float32):
    return torch.rand(shape).to(dtype).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("channels", "regions", "size"), [(64, 400, 5), (256, 40, 7)], ids=["oneDNN", "winograd"])
def test_conv_gru(channels, regions, size, dtype):
    shapes = [*[(channels, channels, 3, 3)] * 2, *[(1, channels, 3, 3)] * 4, (channels,), (1,), (1,)]
    weights = [torch.rand(shape).to(dtype) / 100 for shape in shapes]
    x, h, grad = (patches(regions, channels, size, size, dtype=dtype) for _ in range(3))
    check(torch.ops.irnet.conv_gru.cpp, x, h, weights)
    _, new, reset, update = torch.ops.irnet.conv_gru.cpp(x, h, weights)
    check(torch.ops.irnet.conv_gru_backward.cpp, grad, x, h, weights, new, reset, update)


@pytest.mark.parametrize("layout", ["packed", "contiguous"])
@pytest.mark.parametrize(
    "size",
    [(1, 256, 38, 50), (2, 256, 25, 19), (90, 256, 7, 7), (12, 256, 7, 7)],
    ids=["map", "odd", "groups", "oneDNN"],
)
def test_conv3x3(size, layout):
    x, grad, kernels = patches(*size), patches(*size), torch.rand(size[1], size[1], 3, 3)
    if layout == "contiguous":
        x = x.contiguous()
    else:
        kernels = kernels.contiguous(memory_format=torch.channels_last)
    check(torch.ops.irnet.conv3x3.cpp, x, kernels, torch.rand(size[1]))
    for of_weight in (False, True):
        check(torch.ops.irnet.conv3x3_backward.cpp, grad, x, kernels, of_weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_propagate_regions(dtype):
    regions, channels = 700, 256
    boxes = torch.rand(regions, 4) * 100
    x, weight = torch.rand(regions, channels).to(dtype), torch.rand(5, channels, channels).to(dtype)
    ptr, bandwidth = torch.tensor([0, 300, regions]), torch.tensor(50.0)
    check(torch.ops.irnet.propagate_regions.cpp, x, boxes, ptr, weight, bandwidth)
    check(torch.ops.irnet.propagate_regions_backward.cpp, x, x, boxes, ptr, weight, bandwidth, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["packed", "contiguous"])
def test_convolutions(layout, dtype):
    x, kernels = patches(8, 256, 12, 12, dtype=dtype), torch.rand(256, 256, 3, 3).to(dtype)
    if layout == "contiguous":
        x = x.contiguous()
    one = [1, 1]
    check(torch.ops.aten.convolution.default, x, kernels, None, one, one, one, False, [0, 0], 1)
    wanted = [True, True, False]
    arguments = (x, x, kernels, None, one, one, one, False, [0, 0], 1, wanted)
    check(torch.ops.aten.convolution_backward.default, *arguments)
