"""The definition of segment_matmul and segment_outer in plain PyTorch."""

import torch
from torch import Tensor

from ..checks import image_slices
from ..numerics import opmath_dtype


def segment_matmul(x: Tensor, other: Tensor, ptr: Tensor) -> Tensor:
    """x [R, K], other [B, K, N] -> [R, N]: every row times the matrix of its image."""
    dtype = opmath_dtype(x.dtype)
    out = torch.empty((len(x), other.shape[2]), dtype=x.dtype, device=x.device)
    for matrix, rows in zip(other, image_slices("segment_matmul", ptr, len(x)), strict=True):
        out[rows] = (x[rows].to(dtype) @ matrix.to(dtype)).to(x.dtype)
    return out


def segment_outer(x: Tensor, y: Tensor, ptr: Tensor) -> Tensor:
    """x [R, K], y [R, N] -> [B, K, N]: of every image the sum over its rows of their outer products."""
    dtype = opmath_dtype(x.dtype)
    out = torch.empty((len(ptr) - 1, x.shape[1], y.shape[1]), dtype=x.dtype, device=x.device)
    for matrix, rows in zip(out, image_slices("segment_outer", ptr, len(x)), strict=True):
        matrix.copy_(x[rows].to(dtype).T @ y[rows].to(dtype))
    return out
