// scale_add(x, y) = 2 x + y on a GPU: raw pointers and a stream, no header of PyTorch. For tests of the harness.

#include <cstdint>

#include <cuda_runtime.h>

__global__ void scale_add_kernel(const float* x, const float* y, float* out, int64_t n) {
  const int64_t first = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = first; i < n; i += step) out[i] = 2 * x[i] + y[i];

  // All damage stands here and below.
#ifdef TOY_SLOWER
  const volatile float *again = x, *add = y;  // a fifth of the work again
  for (int64_t i = first; i < n / 5; i += step) out[i] = 2 * again[i] + add[i];
#endif
#ifdef TOY_WRONG
  for (int64_t i = first; i < n; i += step) {
    if (i == n / 2) out[i] += 1;
  }
#endif
}

// How many floats of scratch memory the caller lends; there is no need for any.
extern "C" int64_t scale_add_scratch(int64_t n) {
#ifdef TOY_BUFFER
  return n;
#else
  return 0;
#endif
}

extern "C" int scale_add(const float* x, const float* y, float* out, float* scratch, int64_t n, void* stream) {
  constexpr int64_t threads = 256, most_blocks = 4096;
  const int64_t blocks = (n + threads - 1) / threads < most_blocks ? (n + threads - 1) / threads : most_blocks;
  if (blocks) scale_add_kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(x, y, out, n);
  return cudaGetLastError();
}
