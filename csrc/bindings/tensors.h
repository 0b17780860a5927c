// What the bindings of all operators share: PyTorch's dtypes, layouts, processor and threads, in the words of types.h.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <ATen/cpu/Utils.h>

#include <algorithm>
#include <string>

#include "types.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace irnet {

using at::Tensor;

inline Dtype dtype_of(const Tensor& tensor) {
    switch (tensor.scalar_type()) {
        case at::kDouble: return Dtype::f64;
        case at::kFloat: return Dtype::f32;
        case at::kBFloat16: return Dtype::bf16;
        case at::kHalf: return Dtype::f16;
        default: TORCH_CHECK_TYPE(false, "irnet: no kernel for ", tensor.scalar_type());
    }
}

inline Tensor packed(const Tensor& tensor) { return tensor.contiguous(at::MemoryFormat::ChannelsLast); }

inline Tensor empty_map(const Tensor& like, at::IntArrayRef shape) {
    return at::empty(shape, like.options().memory_format(at::MemoryFormat::ChannelsLast));
}

// PyTorch's choice, which ATEN_CPU_CAPABILITY lowers.
inline cpu::Capability capability() {
    static const std::string name = at::get_cpu_capability();
    if (name == "AVX512") return cpu::Capability::avx512;
    return name == "AVX2" ? cpu::Capability::avx2 : cpu::Capability::portable;
}

// Nothing that is called while it lives is cast: the caller's dtypes are meant.
inline c10::impl::ExcludeDispatchKeyGuard no_autocast() {
    return c10::impl::ExcludeDispatchKeyGuard(c10::autocast_dispatch_keyset);
}

// Whether products of bfloat16 have an instruction of their own.
inline bool multiplies_bfloat16() {
#if defined(__x86_64__) && defined(__GNUC__)
    static const bool has = __builtin_cpu_supports("avx512bf16");
    return has && capability() == cpu::Capability::avx512;
#else
    return false;
#endif
}

// Whether the processor has tiles for products of bfloat16 (AMX), and the system lets this process use them.
inline bool multiplies_bfloat16_tiles() {
#if defined(__x86_64__)
    constexpr unsigned amx_bf16 = 1u << 22;
    unsigned a = 0, b = 0, c = 0, d = 0;
    return multiplies_bfloat16() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & amx_bf16) && at::cpu::init_amx();
#else
    return false;
#endif
}

// What is decided by the processor, as it makes a call faster or slower. set_cpu_path of the extension module decides
// otherwise, for tests and measurements.
struct CpuPaths {
    bool streaming_stores;  // large results go past the caches: faster on AMD, half as fast on a Xeon with AVX-512
    bool gates_by_onednn;   // conv_gru's products of gates in bfloat16: cpu/gru_kernel.cpp has none by tiles
};

inline CpuPaths& cpu_paths() {
#if defined(__x86_64__) && defined(__GNUC__)
    static CpuPaths paths = {__builtin_cpu_is("amd") != 0, multiplies_bfloat16_tiles()};
#else
    static CpuPaths paths = {false, false};
#endif
    return paths;
}

// In which matrices of a dtype are multiplied: float16, and bfloat16 where the processor has no products of it, in
// float32.
inline at::ScalarType matrix_dtype(at::ScalarType dtype) {
    const bool widened = dtype == at::kHalf || (dtype == at::kBFloat16 && !multiplies_bfloat16());
    return widened ? at::kFloat : dtype;
}

// The dtype in which sums are accumulated.
inline at::ScalarType acc_dtype(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

// `ptr`, contiguous, if it says which regions belong to each of the images.
inline const int64_t* checked_bounds(const char* name, const Tensor& ptr, int64_t images, int64_t regions) {
    TORCH_CHECK_VALUE(ptr.dim() == 1 && images >= 0 && ptr.size(0) == images + 1, name, ": ptr must be [B + 1]");
    const int64_t* bounds = ptr.const_data_ptr<int64_t>();
    TORCH_CHECK_VALUE(bounds[0] == 0 && bounds[images] == regions && std::is_sorted(bounds, bounds + images + 1), name,
                      ": ptr must rise from 0 to the number of regions (", regions, "), got ",
                      at::IntArrayRef(bounds, images + 1));
    return bounds;
}

// Threads share the items, each of which takes about the time of `elements` elements.
template <typename Work>
void over_threads(int64_t items, int64_t elements, Work work) {
    const int64_t grain = std::max<int64_t>(1, at::internal::GRAIN_SIZE / std::max<int64_t>(1, elements));
    at::parallel_for(0, items, grain,
                     [&](int64_t begin, int64_t end) { work(cpu::ThreadRange{begin, end, at::get_thread_num()}); });
}

}  // namespace irnet
