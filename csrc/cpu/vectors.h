// Vectors of numbers in which sums are made, one struct for each instruction set: load (16-bit types are widened),
// store (rounded to nearest, ties to even), stream (the same, past the caches, to whole aligned vectors), arithmetic.
// What they are used for lives elsewhere.
//
// Code that uses Avx2, Avx512 or Avx512Bf16 stands between IRNET_BEGIN_... and IRNET_END_TARGET, so that one build
// serves all processors. No header may be included there: its functions would be compiled for a processor that may not
// be this one.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#define IRNET_X86 1
#include <immintrin.h>
#endif

#if defined(__clang__)
#define IRNET_BEGIN_AVX2 \
    _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c\"))), apply_to = function)")
#define IRNET_BEGIN_AVX512 \
    _Pragma("clang attribute push(__attribute__((target(\"avx512f,avx2,fma,f16c\"))), apply_to = function)")
#define IRNET_BEGIN_AVX512_BF16 \
    _Pragma("clang attribute push(__attribute__((target(\"avx512bf16,avx512f\"))), apply_to = function)")
#define IRNET_END_TARGET _Pragma("clang attribute pop")
#else
#define IRNET_BEGIN_AVX2 _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma,f16c\")")
#define IRNET_BEGIN_AVX512 _Pragma("GCC push_options") _Pragma("GCC target(\"avx512f,avx2,fma,f16c\")")
#define IRNET_BEGIN_AVX512_BF16 _Pragma("GCC push_options") _Pragma("GCC target(\"avx512bf16,avx512f\")")
#define IRNET_END_TARGET _Pragma("GCC pop_options")
#endif

namespace irnet::cpu {

// The bits of a bfloat16 and a float16.
struct Bf16 {
    uint16_t bits;
};
struct F16 {
    uint16_t bits;
};

template <typename To, typename From>
inline To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(Bf16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }
inline float widen(F16 x) {
    const uint32_t sign = uint32_t{x.bits} >> 15 << 31, rest = uint32_t{x.bits} & 0x7fff;
    // The exponent moves from bias 15 to 127 by a product, which makes subnormal numbers normal.
    const float value = bit_cast<float>(rest << 13) * 0x1p112f;
    const uint32_t special = rest >= 0x7c00 ? 0x7f800000 : 0;
    return bit_cast<float>(bit_cast<uint32_t>(value) | special | sign);
}

inline void narrow(float x, float* out) { *out = x; }
inline void narrow(double x, double* out) { *out = x; }
inline void narrow(float x, Bf16* out) {
    const uint32_t bits = bit_cast<uint32_t>(x);
    out->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void narrow(float x, F16* out) {
    const uint32_t bits = bit_cast<uint32_t>(x), sign = bits >> 31 << 15, rest = bits & 0x7fffffff;
    uint32_t half;
    if (rest > 0x7f800000) {
        half = 0x7e00;  // NaN
    } else if (rest >= 0x477ff000) {
        half = 0x7c00;  // from half a step above the largest number on: infinite
    } else if (rest < 0x38800000) {
        // Subnormal: adding 0.5 leaves the number of steps of 2^-24, rounded, in the lowest bits.
        half = bit_cast<uint32_t>(bit_cast<float>(rest) + 0.5f) - 0x3f000000;
    } else {
        half = (rest + 0xfff + (rest >> 13 & 1) - 0x38000000) >> 13;
    }
    out->bits = static_cast<uint16_t>(half | sign);
}

// 16 bytes of numbers, as every 64-bit processor adds them; without a fused multiply-add.
template <typename A>
struct Portable {
    using Number = A;
    static constexpr int lanes = 16 / sizeof(A);
    typedef A Lanes __attribute__((vector_size(16)));
    Lanes v;

    static Portable all(A x) { return {Lanes{} + x}; }
    template <typename T>
    static Portable load(const T* from) {
        Portable numbers;
        for (int i = 0; i < lanes; ++i) numbers.v[i] = widen(from[i]);
        return numbers;
    }
    template <typename T>
    void store(T* to) const {
        for (int i = 0; i < lanes; ++i) narrow(v[i], to + i);
    }
    template <typename T>
    void stream(T* to) const {
        store(to);
    }
    Portable plus(Portable a, Portable b) const { return {v + a.v * b.v}; }  // this + a * b
    Portable over(Portable a) const { return {v / a.v}; }
    Portable minus(Portable a) const { return {v - a.v}; }
    Portable times(Portable a) const { return {v * a.v}; }
    Portable relu() const { return {v <= 0 ? Lanes{} : v}; }
    Portable positive() const { return {v > 0 ? Lanes{} + 1 : Lanes{}}; }
    Number sum() const {
        Number total = 0;
        for (int i = 0; i < lanes; ++i) total += v[i];
        return total;
    }
};

#if IRNET_X86

IRNET_BEGIN_AVX2
struct Avx2 {
    using Number = float;
    static constexpr int lanes = 8;
    __m256 v;

    static Avx2 all(float x) { return {_mm256_set1_ps(x)}; }
    static Avx2 load(const float* from) { return {_mm256_loadu_ps(from)}; }
    static Avx2 load(const Bf16* from) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
    }
    static Avx2 load(const F16* from) {
        return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))};
    }
    void store(float* to) const { _mm256_storeu_ps(to, v); }
    void stream(float* to) const { _mm256_stream_ps(to, v); }
    template <typename T>
    void store(T* to) const {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrowed(to));
    }
    template <typename T>
    void stream(T* to) const {
        _mm_stream_si128(reinterpret_cast<__m128i*>(to), narrowed(to));
    }
    __m128i narrowed(const Bf16*) const {
        const __m256i bits = _mm256_castps_si256(v);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        __m256i high = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
        high = _mm256_blendv_epi8(high, _mm256_set1_epi32(0x7fc0), nan);
        return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08));
    }
    __m128i narrowed(const F16*) const { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
    Avx2 plus(Avx2 a, Avx2 b) const { return {_mm256_fmadd_ps(a.v, b.v, v)}; }
    Avx2 over(Avx2 a) const { return {_mm256_div_ps(v, a.v)}; }
    Avx2 minus(Avx2 a) const { return {_mm256_sub_ps(v, a.v)}; }
    Avx2 times(Avx2 a) const { return {_mm256_mul_ps(v, a.v)}; }
    Avx2 relu() const { return {_mm256_max_ps(_mm256_setzero_ps(), v)}; }
    Avx2 positive() const {
        return {_mm256_and_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_GT_OQ), _mm256_set1_ps(1))};
    }
    float sum() const {
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
};
IRNET_END_TARGET

IRNET_BEGIN_AVX512
struct Avx512 {
    using Number = float;
    static constexpr int lanes = 16;
    __m512 v;

    static Avx512 all(float x) { return {_mm512_set1_ps(x)}; }
    static Avx512 load(const float* from) { return {_mm512_loadu_ps(from)}; }
    static Avx512 load(const Bf16* from) {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
    }
    static Avx512 load(const F16* from) {
        return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
    }
    void store(float* to) const { _mm512_storeu_ps(to, v); }
    void stream(float* to) const { _mm512_stream_ps(to, v); }
    template <typename T>
    void store(T* to) const {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrowed(to));
    }
    template <typename T>
    void stream(T* to) const {
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to), narrowed(to));
    }
    __m256i narrowed(const Bf16*) const {
        const __m512i bits = _mm512_castps_si512(v);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        __m512i high = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
        const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(high, nan, _mm512_set1_epi32(0x7fc0)));
    }
    __m256i narrowed(const F16*) const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
    Avx512 plus(Avx512 a, Avx512 b) const { return {_mm512_fmadd_ps(a.v, b.v, v)}; }
    Avx512 over(Avx512 a) const { return {_mm512_div_ps(v, a.v)}; }
    Avx512 minus(Avx512 a) const { return {_mm512_sub_ps(v, a.v)}; }
    Avx512 times(Avx512 a) const { return {_mm512_mul_ps(v, a.v)}; }
    Avx512 relu() const { return {_mm512_max_ps(_mm512_setzero_ps(), v)}; }
    Avx512 positive() const {
        const __mmask16 mask = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_GT_OQ);
        return {_mm512_maskz_mov_ps(mask, _mm512_set1_ps(1))};
    }
    float sum() const { return _mm512_reduce_add_ps(v); }
};
IRNET_END_TARGET

// Sums of 16 numbers, or 32 numbers of bfloat16 as they are in memory: `plus` adds products of pairs, as the processor
// makes them. Denormal numbers count as zero.
IRNET_BEGIN_AVX512_BF16
struct Avx512Bf16 {
    using Number = float;
    static constexpr int lanes = 32;
    __m512 v;

    static Avx512Bf16 all(float x) { return {_mm512_set1_ps(x)}; }
    static Avx512Bf16 load(const Bf16* from) { return {_mm512_loadu_ps(from)}; }
    Avx512Bf16 plus(Avx512Bf16 a, Avx512Bf16 b) const { return {_mm512_dpbf16_ps(v, (__m512bh)a.v, (__m512bh)b.v)}; }
    float sum() const { return _mm512_reduce_add_ps(v); }
};
IRNET_END_TARGET

#endif  // IRNET_X86

// Other threads see what this one has streamed before.
inline void end_stream() {
#if IRNET_X86
    _mm_sfence();
#endif
}

}  // namespace irnet::cpu
