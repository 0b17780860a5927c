// What the kernels of crop_resize and paste_mean share: how threads and blocks divide the channels, which image owns a
// region, and the launch.
//
// Threads along x share the channels, threads along y the cells or samples: with 32 vectors of channels or more a warp
// is at one cell or sample, so its branches and weights are the same in all threads. Strides are in bytes.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <initializer_list>

#include "channels.cuh"
#include "geometry.h"
#include "roi.h"

namespace irnet::cuda {

__device__ __forceinline__ int thread_index() { return threadIdx.y * blockDim.x + threadIdx.x; }

// The block's number among those with the same channels, and where the channels of this thread are in a cell or sample.
struct ThreadSlot {
    unsigned index;
    int64_t offset;
    bool exists;
};

template <typename C>
__device__ __forceinline__ ThreadSlot thread_slot(int64_t channels, unsigned chunks) {
    const int64_t vector = int64_t{blockIdx.x % chunks} * blockDim.x * C::count + threadIdx.x;
    return {blockIdx.x / chunks, vector * C::width * C::bytes, vector * C::width < channels};
}

// The regions of an image: what of them lies in [0, regions], whatever ptr holds.
struct Owned {
    int64_t begin, end;
};

__device__ __forceinline__ Owned owned(const int64_t* ptr, int64_t image, int64_t regions) {
    const int64_t begin = min(max(ptr[image], int64_t{0}), regions);
    return {begin, max(begin, min(ptr[image + 1], regions))};
}

// The image that owns a region, or -1. For a whole warp, which looks at 32 images at once: a search that halves their
// number would wait for memory five times as often.
__device__ __forceinline__ int64_t find_image(const int64_t* ptr, int64_t images, int64_t region) {
    const int lane = thread_index() % kWarp;
    int64_t low = 0, count = images;  // those from which the last one that begins at the region or before is chosen
    while (count > 1) {
        const int64_t spacing = (count - 1) / kWarp + 1, index = lane * spacing;
        const unsigned begun = __ballot_sync(~0u, index < count && ptr[low + index] <= region);
        const int64_t skipped = max(__popc(begun) - 1, 0) * spacing;
        low += skipped;
        count = min(spacing, count - skipped);
    }
    return images > 0 && ptr[low] <= region && region < ptr[low + 1] ? low : -1;
}

// A position along one axis of an array: how far its low neighbour is from the array's first, and the weights of both.
template <typename A>
struct alignas(16) AxisTap {
    int64_t offset;
    A low_weight, high_weight;
};

// The weights of the four neighbours of a position, by their rows and columns.
template <typename A>
struct Corners {
    A low_low, low_high, high_low, high_high;

    Corners() = default;
    __device__ __forceinline__ Corners(const AxisTap<A>& y, const AxisTap<A>& x)
        : low_low(y.low_weight * x.low_weight),
          low_high(y.low_weight * x.high_weight),
          high_low(y.high_weight * x.low_weight),
          high_high(y.high_weight * x.high_weight) {}
};

// Adds those of four neighbours that have weight, from the first one on; no others are read.
template <typename C, typename A>
__device__ __forceinline__ void add_corners(Sum<C>& sum, const Corners<A>& weights, const char* low, int64_t row_stride,
                                            int64_t stride) {
    if (weights.high_high != A(0)) {
        const C a = C::load(low), b = C::load(low + stride);
        const C c = C::load(low + row_stride), d = C::load(low + row_stride + stride);
        sum.add(weights.low_low, a);
        sum.add(weights.low_high, b);
        sum.add(weights.high_low, c);
        sum.add(weights.high_high, d);
    } else if (weights.low_low != A(0)) {
        sum.add(weights.low_low, C::load(low));
        if (weights.low_high != A(0)) sum.add(weights.low_high, C::load(low + stride));
        if (weights.high_low != A(0)) sum.add(weights.high_low, C::load(low + row_stride));
    }
}

// How the channels of a call are divided: among `lanes` threads of a block, and among `chunks` blocks.
struct Split {
    unsigned lanes;
    int64_t chunks;

    Split(int64_t vectors, int count, unsigned least_lanes) : lanes(least_lanes) {
        while (lanes < kWarp && lanes < vectors) lanes *= 2;
        chunks = (vectors + lanes * count - 1) / (lanes * count);
    }
};

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(RoiShape, unsigned, Parameters...), const RoiShape& shape, const Split& split, int64_t blocks,
           unsigned rows, void* stream, Arguments... arguments) {
    blocks *= split.chunks;
    if (blocks == 0) return cudaSuccess;
    if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(split.lanes, rows);
    config.stream = static_cast<cudaStream_t>(stream);
    return cudaLaunchKernelEx(&config, kernel, shape, static_cast<unsigned>(split.chunks), arguments...);
}

// Of a block that writes a patch, at most: a warp for each row of 7 x 7 samples.
constexpr int kPatchThreads = 7 * kWarp;

// With a block for every region, as high as its patch, in whole warps.
template <typename C, typename Kernel, typename... Arguments>
int launch_on_regions(Kernel kernel, const RoiShape& shape, void* stream, Arguments... arguments) {
    const Split split(shape.channels / C::width, C::count, 4);
    const unsigned whole = kWarp / split.lanes, most = kPatchThreads / split.lanes, size = shape.size;
    const unsigned rounds = (size + most - 1) / most, rows = (size + rounds - 1) / rounds;
    return launch(kernel, shape, split, shape.regions, (rows + whole - 1) / whole * whole, stream, arguments...);
}

// Calls `run` with the Channels of the widest access that the number of channels and all addresses allow.
template <typename T, typename Run>
int with_channels(int64_t channels, std::initializer_list<const void*> pointers, Run run) {
    constexpr int width = 16 / sizeof(T);
    uintptr_t bits = channels * sizeof(T);
    for (const void* pointer : pointers) bits |= reinterpret_cast<uintptr_t>(pointer);
    if (bits % 16) return run(Channels<T, 1, 1>());
    if (channels % (2 * kWarp * width)) return run(Channels<T, width, 1>());
    return run(Channels<T, width, 2>());
}

template <typename Run>
int with_channels(Dtype dtype, int64_t channels, std::initializer_list<const void*> pointers, Run run) {
    switch (dtype) {
        case Dtype::f64: return with_channels<double>(channels, pointers, run);
        case Dtype::f32: return with_channels<float>(channels, pointers, run);
        case Dtype::bf16: return with_channels<__nv_bfloat16>(channels, pointers, run);
        case Dtype::f16: return with_channels<__half>(channels, pointers, run);
    }
    return cudaErrorInvalidValue;
}

}  // namespace irnet::cuda
