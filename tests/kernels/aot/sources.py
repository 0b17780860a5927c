"""Kernels that tests of compilers and interpreters write to files."""

from pathlib import Path

LIBRARY = """
import triton
import triton.language as tl

@triton.jit
def larger(a, b):
    return tl.maximum(a, b)

@triton.jit
def kernel(x, out, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    values = larger(tl.load(x + offsets, mask=offsets < n, other=0.0), tl.zeros((BLOCK,), tl.float32))
    total = tl.sum(values, 0) + values.max(0) + tl.cdiv(n, 8) + tl.reduce(values, 0, larger)
    tl.store(out + offsets, tl.cumsum(values, 0) + total, mask=offsets < n)

@triton.jit
def centred_kernel(x, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    values = tl.load(x + offsets)
    tl.store(x + offsets, values - tl.sum(values, 0))
"""

SPILLS = """
extern "C" __global__ void spills(float* x) {
  float a[100], sum = 0;
  #pragma unroll
  for (int i = 0; i < 100; ++i) sum += a[i] = x[i];
  #pragma unroll
  for (int i = 0; i < 100; ++i) x[i] = a[i] - sum;
}
"""

NAMES = """
namespace {
template <int N> __global__ void shared_kernel(float* x) {
  __shared__ float s[N];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = s[N - 1 - threadIdx.x];
}
}
__device__ __noinline__ float helper(const float* x, int step) {
  float sum = 0;
  for (int i = 0; i < 100; ++i) sum += x[i * step] * sum;
  return sum;
}
extern "C" __global__ void calls(float* x, int step) { x[0] = helper(x, step) + helper(x + 1, step + 1); }
void launch(float* x) { shared_kernel<128><<<1, 128>>>(x); }
"""


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name
