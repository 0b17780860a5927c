// What the bindings of all operators share: PyTorch's dtypes, layouts, processor and threads, in the words of types.h.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <algorithm>
#include <string>

#include "types.h"

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

// Threads share the items, of which each makes about `numbers` numbers.
template <typename Work>
void share(int64_t items, int64_t numbers, Work work) {
    const int64_t grain = std::max<int64_t>(1, at::internal::GRAIN_SIZE / std::max<int64_t>(1, numbers));
    at::parallel_for(0, items, grain,
                     [&](int64_t begin, int64_t end) { work(cpu::Share{begin, end, at::get_thread_num()}); });
}

}  // namespace irnet
