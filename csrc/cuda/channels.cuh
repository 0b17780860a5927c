// The channels of a cell or a sample that one thread works on: how they are loaded, summed and stored, 16 bytes at a
// time where that is possible. No geometry here.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace irnet::cuda {

constexpr int kWarp = 32;  // threads

// The type in which elements of type T are accumulated.
template <typename T>
using AccType = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

__device__ __forceinline__ void narrow(double x, double* out) { *out = x; }
__device__ __forceinline__ void narrow(float x, float* out) { *out = x; }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16* out) { *out = __float2bfloat16_rn(x); }
__device__ __forceinline__ void narrow(float x, __half* out) { *out = __float2half_rn(x); }

// A vector of `width` elements: one element, or the 16 bytes that a thread can access at once.
template <typename T, int width>
struct Vector;

template <typename T>
struct Vector<T, 1> {
    T bits;

    __device__ __forceinline__ void unpack(AccType<T>* x) const { x[0] = widen(bits); }
    __device__ __forceinline__ void pack(const AccType<T>* x) { narrow(x[0], &bits); }
};

template <>
struct Vector<double, 2> {
    double2 bits;

    __device__ __forceinline__ void unpack(double* x) const {
        x[0] = bits.x;
        x[1] = bits.y;
    }
    __device__ __forceinline__ void pack(const double* x) { bits = make_double2(x[0], x[1]); }
};

template <>
struct Vector<float, 4> {
    float4 bits;

    __device__ __forceinline__ void unpack(float* x) const {
        x[0] = bits.x;
        x[1] = bits.y;
        x[2] = bits.z;
        x[3] = bits.w;
    }
    __device__ __forceinline__ void pack(const float* x) { bits = make_float4(x[0], x[1], x[2], x[3]); }
};

// Two elements in 32 bits. A bfloat16 is the upper half of a float: a shift or a mask, one instruction each.
__device__ __forceinline__ void unpack(unsigned bits, float* x, __nv_bfloat16) {
    x[0] = __uint_as_float(bits << 16);
    x[1] = __uint_as_float(bits & 0xffff0000u);
}
__device__ __forceinline__ void unpack(unsigned bits, float* x, __half) {
    x[0] = __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
    x[1] = __half2float(__ushort_as_half(static_cast<unsigned short>(bits >> 16)));
}
__device__ __forceinline__ unsigned pack(const float* x, __nv_bfloat16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x[0], x[1]);
    return __bfloat16_as_ushort(pair.x) | unsigned{__bfloat16_as_ushort(pair.y)} << 16;
}
__device__ __forceinline__ unsigned pack(const float* x, __half) {
    const __half2 pair = __floats2half2_rn(x[0], x[1]);
    return __half_as_ushort(pair.x) | unsigned{__half_as_ushort(pair.y)} << 16;
}

template <typename T>
struct Vector<T, 8> {
    uint4 bits;

    __device__ __forceinline__ void unpack(float* x) const {
        cuda::unpack(bits.x, x, T());
        cuda::unpack(bits.y, x + 2, T());
        cuda::unpack(bits.z, x + 4, T());
        cuda::unpack(bits.w, x + 6, T());
    }
    __device__ __forceinline__ void pack(const float* x) {
        bits = make_uint4(cuda::pack(x, T()), cuda::pack(x + 2, T()), cuda::pack(x + 4, T()), cuda::pack(x + 6, T()));
    }
};

// `count_` vectors of `width_` elements. They lie kWarp vectors apart, so that the threads of a warp access neighbours.
template <typename T, int width_, int count_>
struct Channels {
    using AccType = cuda::AccType<T>;
    static constexpr int width = width_, count = count_, size = width_ * count_;
    static constexpr int64_t bytes = sizeof(T);  // of an element
    using Bits = decltype(Vector<T, width>::bits);
    Vector<T, width> vectors[count];

    // Intrinsics: from assignments the compiler may make accesses of less than 16 bytes. What is stored is not read
    // again.
    static __device__ __forceinline__ Channels load(const char* from) {
        Channels loaded;
#pragma unroll
        for (int i = 0; i < count; ++i) loaded.vectors[i].bits = __ldg(reinterpret_cast<const Bits*>(from) + i * kWarp);
        return loaded;
    }

    __device__ __forceinline__ void store(char* to) const {
#pragma unroll
        for (int i = 0; i < count; ++i) __stcs(reinterpret_cast<Bits*>(to) + i * kWarp, vectors[i].bits);
    }
};

// Channels in the dtype in which they are summed.
template <typename C>
struct Sum {
    using AccType = typename C::AccType;
    AccType values[C::size] = {};

    Sum() = default;
    __device__ __forceinline__ explicit Sum(const C& channels) {
#pragma unroll
        for (int i = 0; i < C::count; ++i) channels.vectors[i].unpack(values + i * C::width);
    }

    __device__ __forceinline__ void add(AccType weight, const Sum& other) {
#pragma unroll
        for (int i = 0; i < C::size; ++i) values[i] = fma(weight, other.values[i], values[i]);
    }
    __device__ __forceinline__ void add(AccType weight, const C& channels) { add(weight, Sum(channels)); }

    __device__ __forceinline__ void store(char* to) const {
        C rounded;
#pragma unroll
        for (int i = 0; i < C::count; ++i) rounded.vectors[i].pack(values + i * C::width);
        rounded.store(to);
    }
};

// Loads what some terms are about, all of it before the first is added.
template <typename C, int count, typename Term, typename Add>
__device__ __forceinline__ void add_together(const char* from, const Term* terms, Add add) {
    C loaded[count];
#pragma unroll
    for (int k = 0; k < count; ++k) loaded[k] = C::load(from + terms[k].offset);
#pragma unroll
    for (int k = 0; k < count; ++k) add(terms[k], Sum<C>(loaded[k]));
}

// Calls `add` with each term and what is at its offset, in order; four loads are on their way at once. No load has a
// condition of its own, because its registers would be taken through the whole kernel.
template <typename C, typename Term, typename Add>
__device__ __forceinline__ void add_terms(const char* from, const Term* terms, int count, Add add) {
    constexpr int together = 4 / C::count;
#pragma unroll 1
    for (; count >= together; count -= together, terms += together) add_together<C, together>(from, terms, add);
    if (together > 2 && count >= 2) {
        add_together<C, 2>(from, terms, add);
        terms += 2;
        count -= 2;
    }
    if (count > 0) add_together<C, 1>(from, terms, add);
}

}  // namespace irnet::cuda
