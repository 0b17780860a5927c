#!/bin/bash
# triton 3.7.1: the interpreter's tl.fma rounds twice, so what is exact on a GPU is lost when a kernel is tested without one.
#
# A fused multiply-add exists to round once: fma(x, y, -x * y) is the rounding error of the product, the first step of every
# compensated sum, Cody-Waite reduction or double-float product. The compiler emits fma.rn.f32. TRITON_INTERPRET=1, which is
# there to check numerics without a GPU, computes x * y + z in two roundings: the error is always 0, and a kernel that is
# right on a GPU fails its test (or one that relies on the loss passes).
#
# Seen for x = y = 1 + 2^-12 in float32, whose square is 1 + 2^-11 + 2^-24:
#   PTX: fma.rn.f32
#   interpreted: 0.0
#   exact: 5.960464477539063e-08
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q --disable-pip-version-check torch==2.13.0 triton==3.7.1 numpy==2.4.6 setuptools==84.2.1
cat >kernel.py <<'P'
import os

import torch
import triton
import triton.language as tl
from fractions import Fraction


@triton.jit
def error_of_product(x, y, out):
    a, b = tl.load(x), tl.load(y)
    tl.store(out, tl.fma(a, b, -(a * b)))


if os.environ.get("TRITON_INTERPRET") == "1":
    x, out = torch.tensor([1 + 2.0**-12]), torch.zeros(1)
    error_of_product[(1,)](x, x, out)
    exact = Fraction(x.item()) ** 2 - Fraction((x * x).item())
    print("interpreted:", out.item())
    print("exact:", float(exact))
else:
    source = triton.compiler.ASTSource(error_of_product, dict.fromkeys(("x", "y", "out"), "*fp32"))
    ptx = triton.compile(source, target=triton.backends.compiler.GPUTarget("cuda", 90, 32)).asm["ptx"]
    print("PTX:", "fma.rn.f32" if "fma.rn.f32" in ptx else "no fma.rn.f32")
P
export TRITON_CACHE_DIR=$work/cache
{ env/bin/python kernel.py; TRITON_INTERPRET=1 env/bin/python kernel.py; } | tee seen
diff seen - <<'S' || { echo "it has changed"; exit 1; }
PTX: fma.rn.f32
interpreted: 0.0
exact: 5.960464477539063e-08
S
