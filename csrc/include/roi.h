// The kernels of crop_resize and paste_mean as bindings/roi.cpp calls them: raw pointers, no header of PyTorch, no
// allocation.
//
// Maps are [images, height, width, channels] and patches [regions, size, size, channels], packed (channels_last);
// boxes are [regions, 4]; image b owns the regions ptr[b] to ptr[b + 1]. Sums are made in float, in double for f64.
// crop_resize and paste_mean read what the other's gradient writes and the reverse: all four are sums of weighted cells
// or samples, in an order that depends on nothing but the image's own boxes.
#pragma once

#include <cstdint>

#include "types.h"

namespace irnet {

struct RoiShape {
    int64_t images, regions, channels;
    int height, width;  // of a map
    int size;           // of a patch
};

namespace cpu {

struct Roi {
    Dtype dtype;
    Capability capability;
    RoiShape shape;
    const float* boxes;
    const int64_t* ptr;  // rises from 0 to `regions`
    int threads;         // how many share the work
    bool streams;        // whether large results are stored past the caches
    void* scratch;       // crop_scratch_bytes or paste_scratch_bytes of it; null for crop_resize
};

// For what is known of each region, and for each thread a list of regions.
int64_t crop_scratch_bytes(const Roi& roi);
int64_t paste_scratch_bytes(const Roi& roi);
// Fill the scratch, before the gradient of crop_resize or either paste function; items are regions.
void prepare_crop(const Roi& roi, bool clamp, ThreadRange regions);
void prepare_paste(const Roi& roi, ThreadRange regions);

// Items are rows of patches: regions * size.
void crop_resize(const Roi& roi, bool clamp, const void* features, void* out, ThreadRange patch_rows);
// Items are rows of maps: images * height.
void crop_resize_backward(const Roi& roi, const void* grad, void* out, ThreadRange map_rows);
void paste_mean(const Roi& roi, const void* memory, const void* patches, void* out, ThreadRange map_rows);
// Items are regions.
void paste_mean_backward(const Roi& roi, const void* grad, void* out, ThreadRange regions);

}  // namespace cpu

namespace cuda {

// Each launches on `stream` (a cudaStream_t), writes all of `out`, and returns the launch's cudaError_t. `ptr` is on
// the device and need not be sound: values are clamped to [0, regions], and nothing outside the arrays is touched.
int crop_resize(Dtype dtype, RoiShape shape, const void* features, const float* boxes, const int64_t* ptr, bool clamp,
                void* out, void* stream);
int crop_resize_backward(Dtype dtype, RoiShape shape, const void* grad, const float* boxes, const int64_t* ptr,
                         bool clamp, void* out, void* stream);
int paste_mean(Dtype dtype, RoiShape shape, const void* memory, const void* patches, const float* boxes,
               const int64_t* ptr, void* out, void* stream);
// `shares` has room for a number of the dtype of sums for every cell: 1 / the number of regions that cover it.
int paste_mean_backward(Dtype dtype, RoiShape shape, const void* grad, const float* boxes, const int64_t* ptr,
                        void* shares, void* out, void* stream);

}  // namespace cuda

}  // namespace irnet
