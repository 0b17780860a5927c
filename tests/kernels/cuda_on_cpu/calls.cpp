// crop_resize_kernel.cu and paste_mean_kernel.cu as C++, and their functions as ctypes can call them.

#include <memory>

#include "cuda/crop_resize_kernel.cu"
#include "cuda/paste_mean_kernel.cu"

using namespace irnet;

extern "C" {

void set_order(unsigned order) { cuda_on_cpu::order = order; }

int crop_resize(int dtype, const RoiShape* shape, const void* features, const float* boxes, const int64_t* ptr,
                bool clamp, void* out) {
    return cuda::crop_resize(static_cast<Dtype>(dtype), *shape, features, boxes, ptr, clamp, out, nullptr);
}

int crop_resize_backward(int dtype, const RoiShape* shape, const void* grad, const float* boxes, const int64_t* ptr,
                         bool clamp, void* out) {
    return cuda::crop_resize_backward(static_cast<Dtype>(dtype), *shape, grad, boxes, ptr, clamp, out, nullptr);
}

int paste_mean(int dtype, const RoiShape* shape, const void* memory, const void* patches, const float* boxes,
               const int64_t* ptr, void* out) {
    return cuda::paste_mean(static_cast<Dtype>(dtype), *shape, memory, patches, boxes, ptr, out, nullptr);
}

int paste_mean_backward(int dtype, const RoiShape* shape, const void* grad, const float* boxes, const int64_t* ptr,
                        void* out) {
    // As long as it must be and no longer; bytes of 0xff make NaN.
    const size_t bytes =
        shape->images * shape->height * shape->width * (static_cast<Dtype>(dtype) == Dtype::f64 ? 8 : 4);
    const std::unique_ptr<void, void (*)(void*)> shares(malloc(bytes), free);
    memset(shares.get(), 0xff, bytes);
    return cuda::paste_mean_backward(static_cast<Dtype>(dtype), *shape, grad, boxes, ptr, shares.get(), out, nullptr);
}

}  // extern "C"
