"""What the Triton kernels of several operators share: rounding, products, division, the exponential, and what their
launchers compile them for. No kernel is launched here.

On a GPU Triton's `/` and `tl.exp` of float32 are approximations (div.full, ex2.approx), good to 2 and 4 roundings and
worse for large exponents; the interpreter's are exact, so no test without a GPU would see what they lose.
"""

import torch
import triton
import triton.language as tl

POINTERS = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """In another dtype, rounded to nearest even; Triton's interpreter would cut a bfloat16's bits off."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        bits = tl.where(value == value, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        result = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        result = value.to(dtype)
    return result


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b. Not every GPU multiplies matrices of float64; Triton's interpreter takes bfloat16 for integers."""
    if total.dtype == tl.float64:
        total += tl.sum(a[:, :, None] * b[None, :, :], 1)
    elif INTERPRETED:
        total = tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def divide(a, b):
    """a / b, rounded as IEEE 754 says, which `/` is for float64 only."""
    return a / b if a.dtype == tl.float64 else tl.div_rn(a, b)


@triton.jit
def exp(x):
    """e^x: in float32 within 1 ulp, and 0 below 2^-125. A NaN stays one."""
    if x.dtype == tl.float64:
        result = tl.exp(x)
    else:
        x = tl.minimum(tl.maximum(x, -87.4, tl.PropagateNan.ALL), 89.0, tl.PropagateNan.ALL)
        result = exp_between(x)
    return result


@triton.jit
def exp_between(x):
    """The same for x of float32 from -87.4, where it is 0, to 89, where it is infinite.

    e^x = 2^n e^r with n = round(x / ln 2): ln 2 stands in two parts, so that n times the first is exact, as is its
    difference to x. The polynomial (degree 6, minimax with 1 + r fixed) is good to 2^-28; it and the power of two are
    both off by a factor of 2, for 2^128 is no float32. Not fused, as Triton's interpreter takes them, the operations
    are good to 1.2 ulp.
    """
    shifted = tl.fma(x, 1.4426950408889634, 12582912.0)  # 1.5 * 2^23: the last bits are n
    n = shifted - 12582912.0
    r = tl.fma(n, 2.12194440e-4, tl.fma(n, -0.693359375, x))
    p = tl.fma(r, 2 * 0.0013814467238262296, 2 * 0.008368780836462975)
    p = tl.fma(p, r, 2 * 0.04166839271783829)
    p = tl.fma(p, r, 2 * 0.1666651964187622)
    p = tl.fma(p, r, 2 * 0.4999999403953552)
    p = tl.fma(tl.fma(p, r, 2.0), r, 2.0)
    power = (shifted.to(tl.int32, bitcast=True) << 23) + (126 << 23)
    return p * power.to(tl.float32, bitcast=True)


@triton.jit
def reciprocal(x):
    """1 / x for positive x, rounded as IEEE 754 does (but for one in a million), without the branch of `divide`.

    In float32 x and 1 / x are no subnormal numbers.
    """
    if x.dtype == tl.float64:
        result = 1 / x
    else:
        root = tl.rsqrt(x)
        result = root * root
        result = tl.fma(result, tl.fma(-x, result, 1.0), result)
    return result


@triton.jit
def quotient(a, b, inverse):
    """a / b of float32 as IEEE 754 rounds it, with `inverse` = 1 / b at hand; nothing overflows or is infinite."""
    result = a * inverse
    return tl.fma(tl.fma(-result, b, a), inverse, result)


@triton.jit
def square_root(x):
    """sqrt(x) for positive x, rounded as IEEE 754 does (but for one in a million), without the branch of `tl.sqrt_rn`.

    In float32 x is no subnormal number.
    """
    if x.dtype == tl.float64:
        result = tl.sqrt(x)
    else:
        inverse = tl.rsqrt(x)
        result = x * inverse
        result = tl.fma(tl.fma(-result, result, x), 0.5 * inverse, result)
    return result


# What launchers share


def acc_type(dtype: torch.dtype) -> tl.dtype:
    """The dtype in which kernels accumulate: Triton's name of numerics.opmath_dtype."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def precision(dtype: torch.dtype) -> str:
    """The precision of matrix products of a dtype: TF32 only where PyTorch's own products may take it."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def split(sizes: dict) -> tuple[dict, dict]:
    """A configuration in two: the kernel's compile-time arguments, and how it is compiled."""
    options = {name: sizes[name] for name in ("num_warps", "num_stages")}
    return {name: size for name, size in sizes.items() if name not in options}, options
