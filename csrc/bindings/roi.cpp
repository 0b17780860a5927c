// crop_resize, paste_mean and their gradients for PyTorch: allocation, dtypes, threads, registration. The public
// functions of api.py have checked shapes; the kernels are in cpu/roi_kernel.cpp and
// cuda/*_kernel.cu.

#include "roi.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>

#include "tensors.h"

#ifdef IRNET_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace irnet {

namespace {

// Of maps and patches that an operator is given, null where it makes them; height, width and size are then the
// caller's. api.py has checked more, and says it better: this keeps the kernels within their arrays.
RoiShape shape_of(const Tensor* maps, const Tensor* patches, const Tensor& boxes, const Tensor& ptr, int64_t height,
                  int64_t width, int64_t size, int64_t least_size) {
    TORCH_CHECK_VALUE(ptr.dim() == 1 && ptr.size(0) >= 1 && boxes.dim() == 2 && boxes.size(1) == 4,
                      "irnet: ptr must be [B + 1], boxes [R, 4]");
    const int64_t images = ptr.size(0) - 1, regions = boxes.size(0), channels = (maps ? maps : patches)->size(1);
    TORCH_CHECK_VALUE(!maps || maps->size(0) == images, "irnet: ptr must have an entry for every map, and one more");
    TORCH_CHECK_VALUE(!patches || (patches->size(0) == regions && patches->size(1) == channels &&
                                   patches->size(2) == size && patches->size(3) == size),
                      "irnet: patches must be [R, C, size, size]");
    // Positions in float32 tell no more cells apart.
    TORCH_CHECK_VALUE(
        size >= least_size && height >= 0 && width >= 0 && std::max({height, width, size}) <= int64_t{1} << 24,
        "irnet: maps and patches have at most 2^24 rows and columns, patches at least ", least_size);
    return {images, regions, channels, static_cast<int>(height), static_cast<int>(width), static_cast<int>(size)};
}

// -------------------------------------------------------------------------------------------------------------- CPU

// `boxes` and `ptr` must be contiguous and outlive the result.
cpu::Roi cpu_roi(const char* name, const Tensor& map, RoiShape shape, const Tensor& boxes, const Tensor& ptr) {
    const int64_t* bounds = checked_bounds(name, ptr, shape.images, shape.regions);
    return {dtype_of(map),
            capability(),
            shape,
            boxes.const_data_ptr<float>(),
            bounds,
            at::get_num_threads(),
            cpu_paths().streaming_stores,
            nullptr};
}

Tensor scratch(int64_t bytes, const Tensor& like, cpu::Roi& roi) {
    Tensor memory = at::empty({bytes}, like.options().dtype(at::kByte));
    roi.scratch = memory.mutable_data_ptr();
    return memory;
}

Tensor crop_resize_cpu(const Tensor& features, const Tensor& boxes, const Tensor& ptr, int64_t size,
                       std::string_view border) {
    const Tensor maps = packed(features), corners = boxes.contiguous(), bounds = ptr.contiguous();
    const RoiShape s = shape_of(&maps, nullptr, corners, bounds, maps.size(2), maps.size(3), size, 1);
    const cpu::Roi roi = cpu_roi("crop_resize", maps, s, corners, bounds);
    Tensor out = empty_map(maps, {s.regions, s.channels, size, size});
    over_threads(s.regions * size, size * s.channels, [&](cpu::ThreadRange rows) {
        cpu::crop_resize(roi, border == "clamp", maps.const_data_ptr(), out.mutable_data_ptr(), rows);
    });
    return out;
}

Tensor crop_resize_backward_cpu(const Tensor& grad, const Tensor& boxes, const Tensor& ptr, int64_t height,
                                int64_t width, std::string_view border) {
    const Tensor patches = packed(grad), corners = boxes.contiguous(), bounds = ptr.contiguous();
    const RoiShape s = shape_of(nullptr, &patches, corners, bounds, height, width, patches.size(2), 1);
    cpu::Roi roi = cpu_roi("crop_resize_backward", patches, s, corners, bounds);
    const Tensor memory = scratch(cpu::crop_scratch_bytes(roi), patches, roi);
    Tensor out = empty_map(patches, {s.images, s.channels, height, width});
    over_threads(s.regions, 16 * s.size,
                 [&](cpu::ThreadRange regions) { cpu::prepare_crop(roi, border == "clamp", regions); });
    over_threads(s.images * height, width * s.channels, [&](cpu::ThreadRange rows) {
        cpu::crop_resize_backward(roi, patches.const_data_ptr(), out.mutable_data_ptr(), rows);
    });
    return out;
}

Tensor paste_mean_cpu(const Tensor& memory, const Tensor& patches, const Tensor& boxes, const Tensor& ptr) {
    const Tensor maps = packed(memory), parts = packed(patches), corners = boxes.contiguous(),
                 bounds = ptr.contiguous();
    const RoiShape s = shape_of(&maps, &parts, corners, bounds, maps.size(2), maps.size(3), parts.size(2), 2);
    cpu::Roi roi = cpu_roi("paste_mean", maps, s, corners, bounds);
    const Tensor space = scratch(cpu::paste_scratch_bytes(roi), maps, roi);
    Tensor out = empty_map(maps, maps.sizes());
    over_threads(s.regions, 100, [&](cpu::ThreadRange regions) { cpu::prepare_paste(roi, regions); });
    over_threads(s.images * s.height, s.width * s.channels, [&](cpu::ThreadRange rows) {
        cpu::paste_mean(roi, maps.const_data_ptr(), parts.const_data_ptr(), out.mutable_data_ptr(), rows);
    });
    return out;
}

Tensor paste_mean_backward_cpu(const Tensor& grad, const Tensor& boxes, const Tensor& ptr, int64_t size) {
    const Tensor maps = packed(grad), corners = boxes.contiguous(), bounds = ptr.contiguous();
    const RoiShape s = shape_of(&maps, nullptr, corners, bounds, maps.size(2), maps.size(3), size, 2);
    cpu::Roi roi = cpu_roi("paste_mean_backward", maps, s, corners, bounds);
    const Tensor space = scratch(cpu::paste_scratch_bytes(roi), maps, roi);
    Tensor out = empty_map(maps, {s.regions, s.channels, size, size});
    over_threads(s.regions, 100, [&](cpu::ThreadRange regions) { cpu::prepare_paste(roi, regions); });
    over_threads(s.regions, size * size * s.channels, [&](cpu::ThreadRange regions) {
        cpu::paste_mean_backward(roi, maps.const_data_ptr(), out.mutable_data_ptr(), regions);
    });
    return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(irnet, CPU, m) {
    m.impl("crop_resize.cpp", crop_resize_cpu);
    m.impl("crop_resize_backward.cpp", crop_resize_backward_cpu);
    m.impl("paste_mean.cpp", paste_mean_cpu);
    m.impl("paste_mean_backward.cpp", paste_mean_backward_cpu);
}

// ------------------------------------------------------------------------------------------------------------- CUDA

#ifdef IRNET_WITH_CUDA

namespace {

cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream(); }

void launched(int error) { C10_CUDA_CHECK(static_cast<cudaError_t>(error)); }

Tensor crop_resize_cuda(const Tensor& features, const Tensor& boxes, const Tensor& ptr, int64_t size,
                        std::string_view border) {
    const c10::cuda::CUDAGuard guard(features.device());
    const Tensor maps = packed(features), corners = boxes.contiguous(), bounds = ptr.contiguous();
    const RoiShape s = shape_of(&maps, nullptr, corners, bounds, maps.size(2), maps.size(3), size, 1);
    Tensor out = empty_map(maps, {s.regions, s.channels, size, size});
    launched(cuda::crop_resize(dtype_of(maps), s, maps.const_data_ptr(), corners.const_data_ptr<float>(),
                               bounds.const_data_ptr<int64_t>(), border == "clamp", out.mutable_data_ptr(), stream()));
    return out;
}

Tensor crop_resize_backward_cuda(const Tensor& grad, const Tensor& boxes, const Tensor& ptr, int64_t height,
                                 int64_t width, std::string_view border) {
    const c10::cuda::CUDAGuard guard(grad.device());
    const Tensor patches = packed(grad), corners = boxes.contiguous(), bounds = ptr.contiguous();
    const RoiShape s = shape_of(nullptr, &patches, corners, bounds, height, width, patches.size(2), 1);
    Tensor out = empty_map(patches, {s.images, s.channels, height, width});
    launched(cuda::crop_resize_backward(dtype_of(patches), s, patches.const_data_ptr(), corners.const_data_ptr<float>(),
                                        bounds.const_data_ptr<int64_t>(), border == "clamp", out.mutable_data_ptr(),
                                        stream()));
    return out;
}

Tensor paste_mean_cuda(const Tensor& memory, const Tensor& patches, const Tensor& boxes, const Tensor& ptr) {
    const c10::cuda::CUDAGuard guard(memory.device());
    const Tensor maps = packed(memory), parts = packed(patches), corners = boxes.contiguous(),
                 bounds = ptr.contiguous();
    const RoiShape s = shape_of(&maps, &parts, corners, bounds, maps.size(2), maps.size(3), parts.size(2), 2);
    Tensor out = empty_map(maps, maps.sizes());
    launched(cuda::paste_mean(dtype_of(maps), s, maps.const_data_ptr(), parts.const_data_ptr(),
                              corners.const_data_ptr<float>(), bounds.const_data_ptr<int64_t>(), out.mutable_data_ptr(),
                              stream()));
    return out;
}

Tensor paste_mean_backward_cuda(const Tensor& grad, const Tensor& boxes, const Tensor& ptr, int64_t size) {
    const c10::cuda::CUDAGuard guard(grad.device());
    const Tensor maps = packed(grad), corners = boxes.contiguous(), bounds = ptr.contiguous();
    const RoiShape s = shape_of(&maps, nullptr, corners, bounds, maps.size(2), maps.size(3), size, 2);
    const Tensor shares = at::empty({s.images, s.height, s.width}, maps.options().dtype(acc_dtype(maps.scalar_type())));
    Tensor out = empty_map(maps, {s.regions, s.channels, size, size});
    launched(cuda::paste_mean_backward(dtype_of(maps), s, maps.const_data_ptr(), corners.const_data_ptr<float>(),
                                       bounds.const_data_ptr<int64_t>(), shares.mutable_data_ptr(),
                                       out.mutable_data_ptr(), stream()));
    return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(irnet, CUDA, m) {
    m.impl("crop_resize.cuda", crop_resize_cuda);
    m.impl("crop_resize_backward.cuda", crop_resize_backward_cuda);
    m.impl("paste_mean.cuda", paste_mean_cuda);
    m.impl("paste_mean_backward.cuda", paste_mean_backward_cuda);
}

#endif

}  // namespace irnet
