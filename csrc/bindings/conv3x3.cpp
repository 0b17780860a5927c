// conv3x3 and its gradients for PyTorch on a CPU: the convolutions of convolution.h. The public function of
// convolution/api.py has checked shapes.

#include <torch/library.h>

#include <optional>

#include "convolution.h"
#include "tensors.h"

namespace irnet {

namespace {

void check(const Tensor& x, const Tensor& weight) {
    TORCH_CHECK_VALUE(x.dim() == 4 && weight.dim() == 4 && weight.size(1) == x.size(1) && x.size(1) > 0 &&
                          weight.size(2) == 3 && weight.size(3) == 3 && x.scalar_type() == weight.scalar_type(),
                      "conv3x3: wants x [B, C, H, W] and weight [D, C, 3, 3] of one dtype");
}

Tensor conv3x3_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
    check(x, weight);
    TORCH_CHECK_VALUE(
        !bias || (bias->dim() == 1 && bias->size(0) == weight.size(0) && bias->scalar_type() == weight.scalar_type()),
        "conv3x3: wants bias [D] of the dtype of weight");
    // PyTorch's convolution of nothing is a view, which no operator may give.
    if (x.numel() == 0) return empty_map(x, {x.size(0), weight.size(0), x.size(2), x.size(3)}).zero_();
    const auto guard = no_autocast();
    return convolve(packed(x), weight, bias.value_or(Tensor()));
}

Tensor conv3x3_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& weight, bool of_weight) {
    check(x, weight);
    TORCH_CHECK_VALUE(grad.dim() == 4 && grad.size(0) == x.size(0) && grad.size(1) == weight.size(0) &&
                          grad.size(2) == x.size(2) && grad.size(3) == x.size(3) &&
                          grad.scalar_type() == x.scalar_type(),
                      "conv3x3_backward: wants grad of the shape and dtype that conv3x3 gives");
    if (grad.numel() == 0) return empty_map(x, (of_weight ? weight : x).sizes()).zero_();
    const auto guard = no_autocast();
    const Tensor g = packed(grad);
    return of_weight ? kernels_gradients(g, {packed(x)}, weight)[0] : patches_gradient(g, x, weight);
}

}  // namespace

TORCH_LIBRARY_IMPL(irnet, CPU, m) {
    m.impl("conv3x3.cpp", conv3x3_cpu);
    m.impl("conv3x3_backward.cpp", conv3x3_backward_cpu);
}

}  // namespace irnet
