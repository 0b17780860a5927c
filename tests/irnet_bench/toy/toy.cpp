// scale_add(x, y) = 2 x + y on the CPU: the smallest compiled operator, for tests of the harness. No part of irnet.
//
// TOY_LIBRARY names the operator's library, so that builds with different damage can be loaded side by side.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

using torch::stable::Tensor;

__attribute__((noinline)) static void scale_add_kernel(const float* x, const float* y, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = 2 * x[i] + y[i];
}

// All damage stands here: what a careless change might do to a kernel.
static void damage(const Tensor& like, const float* x, const float* y, float* out, int64_t n) {
#ifdef TOY_SLOWER
  scale_add_kernel(x, y, out, n);  // all of the work again
#endif
#ifdef TOY_BUFFER
  torch::stable::empty_like(like);
#endif
#ifdef TOY_WRONG
  if (n > 0) out[n / 2] += 1;
#endif
}

static Tensor scale_add(const Tensor& x, const Tensor& y) {
  STD_TORCH_CHECK(x.numel() == y.numel() && x.is_contiguous() && y.is_contiguous(), "wants two contiguous tensors");
  Tensor out = torch::stable::empty_like(x);
  const auto* in = static_cast<const float*>(x.data_ptr());
  const auto* add = static_cast<const float*>(y.data_ptr());
  auto* result = static_cast<float*>(out.data_ptr());
  scale_add_kernel(in, add, result, x.numel());
  damage(x, in, add, result, x.numel());
  return out;
}

#define LIBRARY(name, m) STABLE_TORCH_LIBRARY(name, m)
#define LIBRARY_IMPL(name, key, m) STABLE_TORCH_LIBRARY_IMPL(name, key, m)

LIBRARY(TOY_LIBRARY, m) { m.def("scale_add(Tensor x, Tensor y) -> Tensor"); }
LIBRARY_IMPL(TOY_LIBRARY, CPU, m) { m.impl("scale_add", TORCH_BOX(&scale_add)); }
