// What is fused around the convolutions of conv_gru on a CPU: gates from products, pointwise passes, and which rows
// enter the gradients. What is done to a row of channels is in gru_body.h and weighted_sum.h.

#include <cmath>

#include "gru.h"
#include "vectors.h"
#include "weighted_sum.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // some of GCC's intrinsics start from an undefined register
#endif

namespace irnet::cpu {

namespace portable {
#include "gru_body.h"
}

#if IRNET_X86
IRNET_BEGIN_AVX2
namespace avx2 {
#include "gru_body.h"
}
IRNET_END_TARGET

IRNET_BEGIN_AVX512
namespace avx512 {
#include "gru_body.h"
}
IRNET_END_TARGET

IRNET_BEGIN_AVX512_BF16
namespace avx512_bf16 {
#include "gru_body.h"
}
IRNET_END_TARGET
#endif

namespace {

// The functions of gru_body.h for one dtype and instruction set.
template <typename A>
struct Rows {
    void (*products)(const Gru&, const void*, const void*, const void*, const void*, void*, ThreadRange);
    void (*change)(const Gru&, bool, const void*, const void*, void*, void*, ThreadRange);
    void (*backward)(const Gru&, const GruGradient&, ThreadRange);
    A (*dot)(const void*, const void*, int64_t);
};

#define IRNET_ROWS(place, V, T)                                                                                      \
    gru.wide ? Rows<A>{place::products_rows<V, T>, place::change_rows<V, T, true>, place::backward_rows<V, T, true>, \
                       place::dot<V, T>}                                                                             \
             : Rows<A> {                                                                                             \
        place::products_rows<V, T>, place::change_rows<V, T, false>, place::backward_rows<V, T, false>,              \
            place::dot<V, T>                                                                                         \
    }

Rows<float> rows_of_floats(const Gru& gru) {
    using A = float;
#if IRNET_X86
    if (gru.capability == Capability::avx512) return IRNET_ROWS(avx512, Avx512, float);
    if (gru.capability == Capability::avx2) return IRNET_ROWS(avx2, Avx2, float);
#endif
    return IRNET_ROWS(portable, Portable<float>, float);
}

// Calls work(Rows{}, T{}): T is the type of the arrays.
template <typename Work>
void with_rows(const Gru& gru, Work work) {
    using A = double;
    switch (gru.dtype) {
        case Dtype::f64: return work(IRNET_ROWS(portable, Portable<double>, double), double{});
        case Dtype::f32: return work(rows_of_floats(gru), float{});
#if IRNET_X86
        case Dtype::bf16:
            return work(
                Rows<float>{avx512_bf16::products_rows<Avx512Bf16, Bf16>, avx512::change_rows<Avx512, Bf16, false>,
                            avx512::backward_rows<Avx512, Bf16, false>, avx512_bf16::dot<Avx512Bf16, Bf16>},
                Bf16{});
#endif
        default: return;  // gru.h
    }
}

// Calls work(tap, neighbour) for every tap of 3 x 3 whose neighbour of a row, by `sign` times the tap's step, is inside
// the patch; both are rows of one patch.
template <typename Work>
void over_taps(int size, int row, int sign, Work work) {
    for (int tap = 0; tap < kTaps; ++tap) {
        const int y = row / size + sign * (tap / 3 - 1), x = row % size + sign * (tap % 3 - 1);
        if (y >= 0 && y < size && x >= 0 && x < size) work(tap, y * size + x);
    }
}

template <typename T, typename A>
void gates(const Gru& gru, const A* products, A reset_bias, A update_bias, const T* state, T* reset, T* update,
           T* reset_state, ThreadRange regions) {
    const int rows = gru.size * gru.size;
    const WeightedSum<A> sum = weighted_sum<A>(gru.dtype, gru.capability);
    for (int64_t row = regions.begin * rows; row < regions.end * rows; ++row) {
        const int place = static_cast<int>(row % rows);
        A r = reset_bias, u = update_bias;
        over_taps(gru.size, place, 1, [&](int tap, int neighbour) {
            const A* product = products + (row - place + neighbour) * kColumns + tap;
            r += product[0];
            u += product[kTaps];
        });
        r = 1 / (1 + std::exp(-r));
        narrow(r, reset + row);
        narrow(1 / (1 + std::exp(-u)), update + row);
        const Term<A> term = {state + row * gru.channels, r};
        sum(&term, 1, gru.channels, {reset_state + row * gru.channels, nullptr, A(1), nullptr, false, false});
    }
}

template <typename T, typename A>
void gates_backward(const Gru& gru, const GruGradient& gradient, const Rows<A>& functions, const T* weights_x,
                    const T* weights_h, T* d_inputs, T* d_state, A* pre_reset, T* columns, ThreadRange regions) {
    const int rows = gru.size * gru.size;
    const int64_t channels = gru.channels;
    const WeightedSum<A> sum = weighted_sum<A>(gru.dtype, gru.capability);
    const T *grad = static_cast<const T*>(gradient.grad), *state = static_cast<const T*>(gradient.state);
    const T *reset = static_cast<const T*>(gradient.reset), *update = static_cast<const T*>(gradient.update);
    const A* pre_update = static_cast<const A*>(gradient.pre_update);
    for (int64_t region = regions.begin; region < regions.end; ++region) {
        const int64_t first = region * rows;
        for (int64_t row = first; row < first + rows; ++row) {
            const A r = widen(reset[row]);
            pre_reset[row] = functions.dot(d_state + row * channels, state + row * channels, channels) * r * (1 - r);
        }
        for (int64_t row = first; row < first + rows; ++row) {
            Term<A> terms_x[kColumns + 1], terms_h[kColumns + 2];
            int count = 0;
            T* column = columns + row * kColumns;
            for (int i = 0; i < kColumns; ++i) narrow(A(0), column + i);
            over_taps(gru.size, static_cast<int>(row - first), -1, [&](int tap, int neighbour) {
                const A pre[] = {pre_reset[first + neighbour], pre_update[first + neighbour]};
                for (int gate = 0; gate < 2; ++gate) {
                    const int i = gate * kTaps + tap;
                    narrow(pre[gate], column + i);
                    terms_x[count] = {weights_x + i * channels, pre[gate]};
                    terms_h[count++] = {weights_h + i * channels, pre[gate]};
                }
            });
            // The large terms come last: that rounds less.
            terms_x[count] = {d_inputs + row * channels, A(1)};
            terms_h[count] = {grad + row * channels, -widen(update[row])};
            terms_h[count + 1] = {d_state + row * channels, widen(reset[row])};
            // In place: channels are read before they are written.
            sum(terms_x, count + 1, channels, {d_inputs + row * channels, nullptr, A(1), nullptr, false, false});
            sum(terms_h, count + 2, channels, {d_state + row * channels, nullptr, A(1), nullptr, false, false});
        }
    }
}

}  // namespace

void gru_products(const Gru& gru, const void* inputs, const void* state, const void* weights_x, const void* weights_h,
                  void* products, ThreadRange rows) {
    with_rows(gru, [&](auto functions, auto) {
        functions.products(gru, inputs, state, weights_x, weights_h, products, rows);
    });
}

void gru_gates(const Gru& gru, const void* products, double reset_bias, double update_bias, const void* state,
               void* reset, void* update, void* reset_state, ThreadRange regions) {
    with_rows(gru, [&](auto functions, auto zero) {
        using T = decltype(zero);
        using A = decltype(functions.dot(nullptr, nullptr, 0));
        gates<T, A>(gru, static_cast<const A*>(products), A(reset_bias), A(update_bias), static_cast<const T*>(state),
                    static_cast<T*>(reset), static_cast<T*>(update), static_cast<T*>(reset_state), regions);
    });
}

void gru_change(const Gru& gru, bool two_parts, const void* state, const void* update, void* candidate, void* change,
                ThreadRange rows) {
    with_rows(gru,
              [&](auto functions, auto) { functions.change(gru, two_parts, state, update, candidate, change, rows); });
}

void gru_backward(const Gru& gru, const GruGradient& gradient, ThreadRange rows) {
    with_rows(gru, [&](auto functions, auto) { functions.backward(gru, gradient, rows); });
}

void gru_gates_backward(const Gru& gru, const GruGradient& gradient, const void* weights_x, const void* weights_h,
                        void* d_inputs, void* d_state, void* pre_reset, void* columns, ThreadRange regions) {
    with_rows(gru, [&](auto functions, auto zero) {
        using T = decltype(zero);
        using A = decltype(functions.dot(nullptr, nullptr, 0));
        gates_backward<T, A>(gru, gradient, functions, static_cast<const T*>(weights_x),
                             static_cast<const T*>(weights_h), static_cast<T*>(d_inputs), static_cast<T*>(d_state),
                             static_cast<A*>(pre_reset), static_cast<T*>(columns), regions);
    });
}

}  // namespace irnet::cpu
