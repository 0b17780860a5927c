"""The arithmetic of operators by formulas is what PyTorch counts of the reference implementations."""

import os
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from irnet_kernels import EdgeSet
from irnet_kernels.convolution import reference as convolution
from irnet_kernels.flops import FORMULAS
from irnet_kernels.graph import reference as graph
from irnet_kernels.gru import reference as gru
from irnet_kernels.segment import reference as segment


def check(operator, function, *arguments):
    with FlopCounterMode(display=False) as counted:
        function(*arguments)
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as stated:
        operator(*arguments)
    assert stated.get_total_flops() == counted.get_total_flops() > 0


def test_a_product_that_is_added_in_place():
    a, b, c = torch.rand(3, 4), torch.rand(3, 5), torch.rand(5, 4)
    check(torch.Tensor.addmm_, torch.addmm, a, b, c)


WITHOUT_PRODUCTS = {"crop_resize", "crop_resize_backward", "paste_mean", "paste_mean_backward"}  # sums of a few rows


def test_formulas_come_with_the_operators_that_they_are_of():
    """In a process that has imported nothing else."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    subprocess.run([sys.executable, "-c", "import irnet_kernels.flops"], check=True, env=environment)


def test_every_operator_has_a_formula_or_no_products():
    names = [name.split("::") for name in torch._C._dispatch_get_all_op_names()]
    there = {name.split(".")[0] for library, name in names if library == "irnet"}
    stated = {str(operator).removeprefix("irnet.") for operator in FORMULAS}
    assert there == WITHOUT_PRODUCTS | stated - {"aten.addmm_"}


@pytest.mark.parametrize("size", [(2, 4, 6, 5, 7), (1, 8, 3, 9, 4)])
def test_conv3x3(size):
    maps, inputs, outputs, height, width = size
    x, grad = (torch.rand(maps, channels, height, width) for channels in (inputs, outputs))
    weight = torch.rand(outputs, inputs, 3, 3)
    check(torch.ops.irnet.conv3x3.reference, convolution.conv3x3, x, weight, None)
    for of_weight in (False, True):
        check(torch.ops.irnet.conv3x3_backward.reference, convolution.conv3x3_backward, grad, x, weight, of_weight)


@pytest.mark.parametrize("gates", [1, 8])
def test_conv_gru(gates):
    shapes = [*[(8, 8, 3, 3)] * 2, *[(gates, 8, 3, 3)] * 4, (8,), (gates,), (gates,)]
    weights, x, h, grad = [torch.rand(shape) for shape in shapes], *torch.rand(3, 5, 8, 7, 7)
    check(torch.ops.irnet.conv_gru.reference, gru.conv_gru, x, h, weights)
    _, *kept = gru.conv_gru(x, h, weights)
    check(torch.ops.irnet.conv_gru_backward.reference, gru.conv_gru_backward, grad, x, h, weights, *kept)


def test_propagate():
    nodes = torch.arange(6)
    edges = EdgeSet.from_edges([(nodes, nodes.roll(k), torch.ones(6)) for k in (1, 2)], 6)
    x, grad, weight = torch.rand(3, 6, 4), torch.rand(3, 6, 5), torch.rand(2, 4, 5)
    check(torch.ops.irnet.propagate.reference, graph.propagate, x, edges.tensors(), weight)
    check(torch.ops.irnet.propagate_backward.reference, graph.propagate_backward, grad, x, edges.tensors(), weight)


def test_segments():
    x, y, ptr = torch.rand(7, 4), torch.rand(7, 5), torch.tensor([0, 3, 3, 7])
    check(torch.ops.irnet.segment_matmul.reference, segment.segment_matmul, x, torch.rand(3, 4, 5), ptr)
    check(torch.ops.irnet.segment_outer.reference, segment.segment_outer, x, y, ptr)
