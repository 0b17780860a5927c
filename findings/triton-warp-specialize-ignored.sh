#!/bin/bash
# triton 3.6.0 and 3.7.1, sm_90: tl.range(..., warp_specialize=True) is ignored without a word for 8 warps.
#
# The hint is documented to split a loop into producer and consumer warps. A tile of 128 x 256, which is what makes a matrix
# product fast on Hopper, needs 8 warps for its accumulator; there the loop is compiled as if nothing had been asked for, with
# no warning, and only the intermediate code tells. With 4 warps 3.6.0 obeys. Whoever compares the two settings by time
# with 8 warps compares a kernel with itself.
#
# Seen (bfloat16 operands through tensor descriptors, a 128 x 128 x 64 tile, three stages):
#   triton 3.6.0, 4 warps: specialised
#   triton 3.6.0, 8 warps: not specialised
#   triton 3.7.1, 8 warps: not specialised
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
cat >product.py <<'P'
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def product(a, b, c, n, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    total = tl.zeros((M, N), tl.float32)
    for k in tl.range(0, n, K, warp_specialize=True):
        total = tl.dot(a.load([0, k]), b.load([0, k]).T, total)
    tl.store(c + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :], total)


types = dict.fromkeys("ab", "tensordesc<bf16[128, 64]>") | {"c": "*fp32", "n": "i32"} | dict.fromkeys("MNK", "constexpr")
source = ASTSource(product, types, {"M": 128, "N": 128, "K": 64})
for warps in map(int, sys.argv[1:]):
    options = {"num_warps": warps, "num_stages": 3}
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ttgir"]
    found = "specialised" if "ttg.warp_specialize(" in code else "not specialised"
    print(f"triton {triton.__version__}, {warps} warps: {found}")
P
export TRITON_CACHE_DIR=$work/cache
for version in 3.6.0 3.7.1; do
    "${PYTHON:-python3}" -m venv env-$version
    env-$version/bin/pip install -q --disable-pip-version-check triton==$version setuptools==81.0.0
done
{ env-3.6.0/bin/python product.py 4 8; env-3.7.1/bin/python product.py 8; } | tee seen
diff seen - <<'S' || { echo "it has changed"; exit 1; }
triton 3.6.0, 4 warps: specialised
triton 3.6.0, 8 warps: not specialised
triton 3.7.1, 8 warps: not specialised
S
