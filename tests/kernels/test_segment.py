"""segment_matmul and segment_outer against loops over images; refusals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from irnet_kernels import segment_matmul, segment_outer
from tests.kernels.helpers import (
    assert_exact_with_gradients,
    assert_within_budget,
    drawn,
    each_dtype,
    each_implementation,
    evaluate,
    normal,
    ragged,
)

counts_of_images = st.lists(st.sampled_from([0, 1, 2, 5, 17, 33]), max_size=4)


def matmul_oracle(x, other, counts):
    parts = [a @ b for a, b in zip(x.split(counts), other, strict=True)]
    return torch.cat(parts) if parts else x @ other.sum(0)


def outer_oracle(x, y, counts):
    parts = [a.T @ b for a, b in zip(x.split(counts), y.split(counts), strict=True)]
    return torch.stack(parts) if parts else (x.T @ y).expand(0, -1, -1)


@each_implementation("segment_matmul")
@drawn(25)
@given(counts=counts_of_images, depth=st.sampled_from([0, 1, 3, 40]), width=st.sampled_from([1, 5, 33]))
def test_segment_matmul_is_one_product_per_image(impl, device, counts, depth, width):
    x = normal(sum(counts), depth).requires_grad_()
    other = normal(len(counts), depth, width, seed=1).requires_grad_()
    got = segment_matmul(x.to(device), ragged(*counts).to(device), other.to(device), impl=impl).cpu()
    assert_exact_with_gradients(got, matmul_oracle(x, other, counts), (x, other))


@each_implementation("segment_outer")
@drawn(25)
@given(counts=counts_of_images, depth=st.sampled_from([1, 3, 40]), width=st.sampled_from([0, 1, 5, 33]))
def test_segment_outer_is_one_product_per_image(impl, device, counts, depth, width):
    x = normal(sum(counts), depth).requires_grad_()
    y = normal(sum(counts), width, seed=1).requires_grad_()
    got = segment_outer(x.to(device), ragged(*counts).to(device), y.to(device), impl=impl).cpu()
    assert_exact_with_gradients(got, outer_oracle(x, y, counts), (x, y))


@each_implementation("segment_matmul")
@each_dtype
def test_real_sizes_keep_the_budget(impl, device, dtype):
    """Forty images of up to 70 regions, 130 classes: both operators and all gradients."""
    counts = [(7 * i) % 71 for i in range(40)]
    ptr = ragged(*counts).to(device)
    shapes = ((sum(counts), 130), (len(counts), 130, 70), (sum(counts), 50))

    def both(impl, p, classes, x):
        return torch.cat(
            [segment_matmul(p, ptr, classes, impl=impl).flatten(), segment_outer(p, ptr, x, impl=impl).flatten()]
        )

    def run(impl, compute):
        inputs = [normal(*s, seed=i).to(dtype).to(compute).to(device).requires_grad_() for i, s in enumerate(shapes)]
        return evaluate(lambda *t: both(impl, *t), inputs)

    for got, exact, reference in zip(
        run(impl, dtype), run("reference", torch.float64), run("reference", dtype), strict=True
    ):
        assert_within_budget(got, exact.cpu(), reference.cpu())


X, M, P = torch.zeros(3, 4), torch.zeros(1, 4, 2), ragged(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: segment_matmul(X[None], P, M), r"segment_matmul: inputs must be \[R, K\] and other \[B, K, N\]"),
        (lambda: segment_matmul(X, P, M[:, :3]), r"segment_matmul: inputs must be .*got \[3, 4\] and \[1, 3, 2\]"),
        (lambda: segment_matmul(X, P, M.double()), "segment_matmul: wants one floating dtype"),
        (lambda: segment_matmul(X, ragged(1, 2), M), "segment_matmul: ptr must have 2 entries for 1 images, got 3"),
        (lambda: segment_matmul(X, P.int(), M), "segment_matmul: ptr must be int64"),
        (lambda: segment_matmul(X, P.to("meta"), M), "segment_matmul: wants one device"),
        (lambda: segment_outer(X, P, X[:2]), r"segment_outer: inputs must be \[R, K\] and other \[R, N\]"),
        (lambda: segment_outer(X, P, X.long()), "segment_outer: wants one floating dtype"),
        (lambda: segment_outer(X, P[None], X), "segment_outer: ptr must be int64"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@each_implementation("segment_matmul")
@pytest.mark.parametrize("ptr", [[0, 2], [1, 3], [0, 4], [0, 5, 3]], ids=str)
def test_ptr_that_does_not_fit_is_refused(impl, device, ptr):
    if device != "cpu" or impl == "triton":
        pytest.skip("on a GPU, and in Triton's interpreter, the values of ptr are not looked at")
    ptr = torch.tensor(ptr)
    with pytest.raises(ValueError, match=r"segment_matmul: ptr must rise from 0 to the number of regions \(3\)"):
        segment_matmul(X, ptr, M.expand(len(ptr) - 1, -1, -1), impl=impl)
    with pytest.raises(ValueError, match=r"segment_outer: ptr must rise from 0 to the number of regions \(3\)"):
        segment_outer(X, ptr, X, impl=impl)
