"""Kernels that do nothing but call a function of irnet_kernels.triton_shared. Loaded as a copy, like other kernels."""

import triton
import triton.language as tl

from irnet_kernels.triton_shared import divide, exp, quotient, reciprocal, square_root

FUNCTIONS = ("exp", "reciprocal", "square_root", "divide", "quotient")


@triton.jit
def shared_kernel(a, b, out, NAME: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x, y = tl.load(a + at), tl.load(b + at)
    if NAME == "exp":
        result = exp(x)
    elif NAME == "reciprocal":
        result = reciprocal(x)
    elif NAME == "square_root":
        result = square_root(x)
    elif NAME == "divide":
        result = divide(x, y)
    else:
        result = quotient(x, y, divide(tl.full((BLOCK,), 1, x.dtype), y))
    tl.store(out + at, result)
