// 3 x 3 convolutions of maps or patches with zeros around each, and their gradients, on a CPU. Maps are
// [B, C, H, W] and kernels [O, C, 3, 3], both in channels_last. Nothing here knows what is convolved.
#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace irnet {

at::Tensor convolve(const at::Tensor& patches, const at::Tensor& kernels, const at::Tensor& bias = {});
// The gradients of `convolve` to the patches and, for each of some patches, to their kernels, in their layout.
at::Tensor patches_gradient(const at::Tensor& grad, const at::Tensor& patches, const at::Tensor& kernels);
std::vector<at::Tensor> kernels_gradients(const at::Tensor& grad, at::TensorList patches, const at::Tensor& kernels);

}  // namespace irnet
