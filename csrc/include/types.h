// What all kernels and those who call them say to each other. No header of PyTorch, no operator.
#pragma once

#include <cstdint>

namespace irnet {

enum class Dtype { f64, f32, bf16, f16 };

// Size in bytes of one element of this dtype.
inline int64_t bytes(Dtype dtype) {
    switch (dtype) {
        case Dtype::f64: return 8;
        case Dtype::f32: return 4;
        default: return 2;
    }
}

namespace cpu {

// The instruction sets for which there is code; bindings/tensors.h asks PyTorch which one the processor has.
enum class Capability { portable, avx2, avx512 };

// The items [begin, end) of a result, for one of the threads.
struct ThreadRange {
    int64_t begin, end;
    int thread;
};

}  // namespace cpu

}  // namespace irnet
