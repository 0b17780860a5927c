"""What a call takes besides time: every allocation counts, and what is kept for the backward pass."""

import gc

import pytest
import torch

from irnet_kernels import counts

CPU = torch.device("cpu")
MIB = 2**20
SIZE = MIB // 4  # float32 elements in a mebibyte


def test_every_allocation_counts():
    def call():
        a = torch.ones(SIZE)
        b = a.neg()
        del a
        return b.neg()

    found = counts.count(call, CPU)
    assert (found.peak_allocated_bytes, found.allocated_bytes) == (2 * MIB, 3 * MIB)
    assert found.operators == len(["ones", "empty", "fill_", "neg", "neg"])
    assert found.peak_reserved_bytes is found.launches is None


def test_counts_are_the_same_every_time():
    x = torch.randn(64, 64, requires_grad=True)

    def call():
        return torch.autograd.grad((x @ x).relu().sum(), x)

    assert counts.count(call, CPU) == counts.count(call, CPU)


def test_saved_bytes_are_those_beyond_the_leaves():
    x = torch.randn(SIZE, requires_grad=True)
    assert counts.saved_bytes(lambda: x * x, [x]) == 0
    assert counts.saved_bytes(lambda: x.exp(), [x]) == MIB
    assert counts.saved_bytes(lambda: x.exp().exp(), [x]) == 2 * MIB
    # One memory that is kept twice is kept once.
    assert counts.saved_bytes(lambda: (y := x.exp()) * y, [x]) == MIB


class Keeps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, a):
        ctx.save_for_backward(a)
        return x * 2


@pytest.mark.filterwarnings("ignore:Sparse")
def test_saved_sparse_tensors_count():
    a = torch.sparse_csr_tensor(torch.arange(9), torch.arange(8), torch.ones(8))  # places of 8 bytes, numbers of 4
    x = torch.randn(8, requires_grad=True)
    assert counts.saved_bytes(lambda: Keeps.apply(x, a), [x]) == 9 * 8 + 8 * 8 + 8 * 4


def test_no_garbage_is_collected_within_a_counted_call():
    """What others have left would be freed within it, and lower its peak."""
    collecting = []
    counts.count(lambda: collecting.append(gc.isenabled()), CPU)
    assert collecting == [True, False], "not in the call that is counted, the second"
    assert gc.isenabled()
