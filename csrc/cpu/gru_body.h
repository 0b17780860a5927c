// The body of gru_kernel.cpp, which includes it once for each instruction set, inside a namespace: what is done to
// every row of channels.

#include "partial_body.h"

// So many of a row's channels, from `at` on, are in one vector.
template <typename Vector>
inline int lanes(int64_t channels, int64_t at) {
    return static_cast<int>(channels - at < Vector::lanes ? channels - at : Vector::lanes);
}

// Adds the products of `rows` rows, one behind the other, with kTaps rows of weights.
template <typename Vector, int rows, typename T>
inline void add_products(int64_t channels, const T* from, const T* weights, Vector (*sums)[kTaps]) {
    for (int64_t at = 0; at < channels; at += Vector::lanes) {
        const int count = lanes<Vector>(channels, at);
        Vector numbers[rows];
#pragma GCC unroll 4
        for (int i = 0; i < rows; ++i) numbers[i] = load<Vector>(from + i * channels + at, count);
#pragma GCC unroll 16  // else the sums are kept in memory
        for (int tap = 0; tap < kTaps; ++tap) {
            const Vector weight = load<Vector>(weights + tap * channels + at, count);
#pragma GCC unroll 4
            for (int i = 0; i < rows; ++i) sums[i][tap] = sums[i][tap].plus(numbers[i], weight);
        }
    }
}

template <typename Vector, int rows, typename T, typename A = typename Vector::Number>
inline void products_of(int64_t channels, const T* x, const T* h, const T* weights_x, const T* weights_h, A* products) {
    for (int gate = 0; gate < 2; ++gate) {
        const int64_t first = gate * kTaps * channels;
        Vector sums[rows][kTaps];
        for (int i = 0; i < rows * kTaps; ++i) sums[i / kTaps][i % kTaps] = Vector::all(0);
        add_products<Vector, rows>(channels, x, weights_x + first, sums);
        add_products<Vector, rows>(channels, h, weights_h + first, sums);
        for (int i = 0; i < rows; ++i) {
            for (int tap = 0; tap < kTaps; ++tap) products[i * kColumns + gate * kTaps + tap] = sums[i][tap].sum();
        }
    }
}

template <typename Vector, typename T>
void products_rows(const Gru& gru, const void* inputs, const void* state, const void* weights_x, const void* weights_h,
                   void* products, ThreadRange rows) {
    using A = typename Vector::Number;
    constexpr int together = Vector::lanes >= 16 ? 3 : 1;  // as many sums as the instruction set's registers hold
    const int64_t channels = gru.channels;
    const T *x = static_cast<const T*>(inputs), *h = static_cast<const T*>(state);
    const T *wx = static_cast<const T*>(weights_x), *wh = static_cast<const T*>(weights_h);
    A* out = static_cast<A*>(products);
    int64_t row = rows.begin;
    for (; row + together <= rows.end; row += together) {
        products_of<Vector, together>(channels, x + row * channels, h + row * channels, wx, wh, out + row * kColumns);
    }
    for (; row < rows.end; ++row) {
        products_of<Vector, 1>(channels, x + row * channels, h + row * channels, wx, wh, out + row * kColumns);
    }
}

// Channels of a gate: its own, or its one number for all.
template <typename Vector, bool wide, typename T>
inline Vector gate(const T* row, int64_t at, int n) {
    return wide ? load<Vector>(row + at, n) : Vector::all(widen(*row));
}

template <typename Vector, typename T, bool wide>
void change_rows(const Gru& gru, bool two_parts, const void* state, const void* update, void* candidate, void* change,
                 ThreadRange rows) {
    const int64_t channels = gru.channels, gates = wide ? channels : 1;
    const Vector one = Vector::all(1);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const T *h = static_cast<const T*>(state) + row * channels, *u = static_cast<const T*>(update) + row * gates;
        T *n = static_cast<T*>(candidate) + row * channels, *out = static_cast<T*>(change) + row * channels;
        for (int64_t at = 0; at < channels; at += Vector::lanes) {
            const int count = lanes<Vector>(channels, at);
            Vector fresh = load<Vector>(n + at, count);
            if (two_parts) fresh = fresh.plus(load<Vector>(out + at, count), one);
            fresh = fresh.relu();
            const Vector moved = fresh.minus(load<Vector>(h + at, count)).times(gate<Vector, wide>(u, at, count));
            store(fresh, n + at, count);
            store(moved, out + at, count);
        }
    }
}

template <typename Vector, typename T, bool wide>
void backward_rows(const Gru& gru, const GruGradient& gradient, ThreadRange rows) {
    using A = typename Vector::Number;
    const int64_t channels = gru.channels, gates = wide ? channels : 1;
    const Vector one = Vector::all(1);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const T *g = static_cast<const T*>(gradient.grad) + row * channels,
                *h = static_cast<const T*>(gradient.state) + row * channels,
                *n = static_cast<const T*>(gradient.candidate) + row * channels,
                *r = static_cast<const T*>(gradient.reset) + row * gates,
                *u = static_cast<const T*>(gradient.update) + row * gates;
        T *pre = static_cast<T*>(gradient.pre_candidate) + row * channels,
          *rh = static_cast<T*>(gradient.reset_state) + row * channels;
        A* pre_update = static_cast<A*>(gradient.pre_update) + row * gates;
        Vector total = Vector::all(0);
        for (int64_t at = 0; at < channels; at += Vector::lanes) {
            const int count = lanes<Vector>(channels, at);
            const Vector up = load<Vector>(g + at, count), state = load<Vector>(h + at, count);
            const Vector fresh = load<Vector>(n + at, count), update = gate<Vector, wide>(u, at, count);
            store(up.times(update).times(fresh.positive()), pre + at, count);
            store(state.times(gate<Vector, wide>(r, at, count)), rh + at, count);
            if (wide) {
                const Vector slope = update.times(one.minus(update));
                store(up.times(fresh.minus(state)).times(slope), pre_update + at, count);
            } else {
                total = total.plus(up, fresh.minus(state));
            }
        }
        if (!wide) *pre_update = total.sum() * widen(*u) * (1 - widen(*u));
    }
}

template <typename Vector, typename T>
typename Vector::Number dot(const void* a, const void* b, int64_t channels) {
    Vector total = Vector::all(0);
    for (int64_t at = 0; at < channels; at += Vector::lanes) {
        const int count = lanes<Vector>(channels, at);
        total = total.plus(load<Vector>(static_cast<const T*>(a) + at, count),
                           load<Vector>(static_cast<const T*>(b) + at, count));
    }
    return total.sum();
}
