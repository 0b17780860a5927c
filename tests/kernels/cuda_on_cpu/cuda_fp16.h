// float16 as in CUDA, as far as csrc/cuda needs it.
#pragma once

#include "cuda_runtime.h"

struct __half {
    uint16_t bits;
};
struct __half2 {
    __half x, y;
};

inline float __half2float(__half x) {
    const unsigned exponent = x.bits >> 10 & 0x1f, fraction = x.bits & 0x3ff;
    const float size = exponent == 0     ? ldexpf(fraction, -24)
                       : exponent < 0x1f ? ldexpf(fraction + 0x400, static_cast<int>(exponent) - 25)
                       : fraction == 0   ? INFINITY
                                         : NAN;
    return x.bits & 0x8000 ? -size : size;
}

inline __half __float2half_rn(float x) {
    const uint16_t sign = __float_as_uint(x) >> 16 & 0x8000;
    if (x != x) return {0x7fff};
    const float size = fabsf(x);
    if (size >= 65520) return {static_cast<uint16_t>(sign | 0x7c00)};
    // In units of the last place, which are those of the smallest normal number or larger; rounding may carry on
    // upwards.
    const int exponent = std::max(size > 0 ? ilogbf(size) : -14, -14);
    const unsigned units = static_cast<unsigned>(rintf(ldexpf(size, 10 - exponent)));
    return {static_cast<uint16_t>(sign | (units + (static_cast<unsigned>(exponent + 14) << 10)))};
}

inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
