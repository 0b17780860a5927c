"""The arithmetic of a GPU in Triton's interpreter, which computes exactly where a GPU approximates.

What Triton 3.6 and 3.7 emit for float32 on sm_80 to sm_100, read off the PTX, and how far PTX says that it may be off:

    a / b           div.full.f32              2 ulp
    tl.exp(x)       ex2.approx.f32(x * log2 e)  2 ulp, and x * log2 e is rounded first
    tl.exp2(x)      ex2.approx.ftz.f32        2 ulp
    tl.log2, tl.log lg2.approx or a polynomial 2 ulp, at least 2^-22 near 1
    tl.sqrt(x)      sqrt.approx.ftz.f32       1 ulp
    tl.rsqrt(x)     rsqrt.approx.ftz.f32      2 ulp
    tl.sigmoid(x)   1 / (1 + tl.exp(-x)) of these
    tl.div_rn, tl.sqrt_rn                     as IEEE 754 rounds, in the interpreter, too
    tl.fma          one rounding              (two in the interpreter)

Errors are drawn between these bounds from a seed, one by one; every result is a float32 again, and 0 where it would be
subnormal. float64 is left alone.
"""

import contextlib
from collections.abc import Iterator

import numpy as np

LEAST = np.float32(2.0**-126)


@contextlib.contextmanager
def gpu_math(seed: int = 0) -> Iterator[None]:
    """Within, kernels that are interpreted divide, exponentiate and take roots of float32 as a GPU does."""
    from triton.runtime.interpreter import InterpreterBuilder as Builder
    from triton.runtime.interpreter import TensorHandle

    random = np.random.default_rng(seed)

    def approximate(exact: np.ndarray, ulps: float) -> np.ndarray:
        """The float32 nearest to what is so far off, of what is computed in float64."""
        unit = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
        unit = np.where(np.isfinite(unit), unit, 0)
        found = (exact + (ulps - 0.5) * unit * random.uniform(-1, 1, np.shape(exact))).astype(np.float32)
        return np.where(np.abs(found) < LEAST, np.copysign(np.float32(0), found), found)

    def unary(function, ulps):
        def compute(self, argument):
            data = np.asarray(argument.data)
            if data.dtype == np.float32:
                with np.errstate(all="ignore"):
                    data = approximate(function(data.astype(np.float64)), ulps)
            else:
                data = function(data)
            return TensorHandle(data, argument.dtype.scalar)

        return compute

    def exp(self, argument):
        data = np.asarray(argument.data)
        if data.dtype != np.float32:
            return TensorHandle(np.exp(data), argument.dtype.scalar)
        with np.errstate(all="ignore"):
            power = (data * np.float32(1.4426950408889634)).astype(np.float64)
            return TensorHandle(approximate(np.exp2(power), 2), argument.dtype.scalar)

    def divide(self, left, right):
        def quotient(a, b):
            if np.asarray(a).dtype != np.float32:
                return np.divide(a, b)
            with np.errstate(all="ignore"):
                exact = np.divide(np.asarray(a, np.float64), np.asarray(b, np.float64))
                return np.where((exact == 0) | ~np.isfinite(exact), exact, approximate(exact, 2)).astype(np.float32)

        return self.binary_op(left, right, quotient)

    emulated = {
        "create_fdiv": divide,
        "create_exp": exp,
        "create_exp2": unary(np.exp2, 2),
        "create_log": unary(np.log, 2),
        "create_log2": unary(np.log2, 2),
        "create_sqrt": unary(np.sqrt, 1),
        "create_rsqrt": unary(lambda x: 1 / np.sqrt(x), 2),
    }
    before = {name: vars(Builder)[name] for name in emulated}
    try:
        for name, function in emulated.items():
            setattr(Builder, name, function)
        yield
    finally:
        for name, function in before.items():
            setattr(Builder, name, function)
