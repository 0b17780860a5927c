// segment_matmul and segment_outer for PyTorch on a CPU: a matrix product for every image, PyTorch's.

#include <ATen/ATen.h>
#include <torch/library.h>

#include "tensors.h"

namespace irnet {

namespace {

// Calls work(image, first region, their number).
template <typename Work>
void over_images(const char* name, const Tensor& ptr, int64_t images, int64_t regions, Work work) {
    const Tensor bounds = ptr.contiguous();
    const int64_t* bound = checked_bounds(name, bounds, images, regions);
    for (int64_t image = 0; image < images; ++image) work(image, bound[image], bound[image + 1] - bound[image]);
}

Tensor segment_matmul_cpu(const Tensor& x, const Tensor& other, const Tensor& ptr) {
    TORCH_CHECK_VALUE(x.dim() == 2 && other.dim() == 3 && other.size(1) == x.size(1),
                      "segment_matmul: wants x [R, K] and other [B, K, N]");
    const auto guard = no_autocast();
    const at::ScalarType dtype = matrix_dtype(x.scalar_type());
    const Tensor rows = x.to(dtype), matrices = other.to(dtype),
                 out = at::empty({x.size(0), other.size(2)}, rows.options());
    over_images("segment_matmul", ptr, other.size(0), x.size(0), [&](int64_t image, int64_t first, int64_t count) {
        Tensor part = out.narrow(0, first, count);
        at::mm_out(part, rows.narrow(0, first, count), matrices[image]);
    });
    return out.to(x.scalar_type());
}

Tensor segment_outer_cpu(const Tensor& x, const Tensor& y, const Tensor& ptr) {
    TORCH_CHECK_VALUE(x.dim() == 2 && y.dim() == 2 && x.size(0) == y.size(0) && ptr.dim() == 1 && ptr.size(0) >= 1,
                      "segment_outer: wants x [R, K], y [R, N] and ptr [B + 1]");
    const auto guard = no_autocast();
    const at::ScalarType dtype = matrix_dtype(x.scalar_type());
    const Tensor left = x.to(dtype), right = y.to(dtype),
                 out = at::empty({ptr.size(0) - 1, x.size(1), y.size(1)}, left.options());
    over_images("segment_outer", ptr, out.size(0), x.size(0), [&](int64_t image, int64_t first, int64_t count) {
        Tensor part = out[image];
        at::mm_out(part, left.narrow(0, first, count).t(), right.narrow(0, first, count));
    });
    return out.to(x.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(irnet, CPU, m) {
    m.impl("segment_matmul.cpp", segment_matmul_cpu);
    m.impl("segment_outer.cpp", segment_outer_cpu);
}

}  // namespace irnet
