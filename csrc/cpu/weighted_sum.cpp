// weighted_sum.h for each instruction set and dtype; the loop itself is in weighted_sum_body.h.

#include "weighted_sum.h"

#include "vectors.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // some of GCC's intrinsics start from an undefined register
#endif

namespace irnet::cpu {

namespace portable {
#include "weighted_sum_body.h"
}

#if IRNET_X86
IRNET_BEGIN_AVX2
namespace avx2 {
#include "weighted_sum_body.h"
}
IRNET_END_TARGET

IRNET_BEGIN_AVX512
namespace avx512 {
#include "weighted_sum_body.h"
}
IRNET_END_TARGET
#endif

namespace {

template <typename T>
WeightedSum<float> of_floats(Capability capability) {
#if IRNET_X86
    if (capability == Capability::avx512) return avx512::sum_rows<Avx512, T>;
    if (capability == Capability::avx2) return avx2::sum_rows<Avx2, T>;
#endif
    return portable::sum_rows<Portable<float>, T>;
}

}  // namespace

template <>
WeightedSum<float> weighted_sum<float>(Dtype dtype, Capability capability) {
    switch (dtype) {
        case Dtype::bf16: return of_floats<Bf16>(capability);
        case Dtype::f16: return of_floats<F16>(capability);
        default: return of_floats<float>(capability);
    }
}

// float64 serves checks, not speed.
template <>
WeightedSum<double> weighted_sum<double>(Dtype, Capability) {
    return portable::sum_rows<Portable<double>, double>;
}

}  // namespace irnet::cpu
