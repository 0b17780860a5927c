// The body of weighted_sum.cpp, which includes it once for each instruction set, inside a namespace.

#include "partial_body.h"

// The channels of so many vectors from `first` on; the vectors hold `n` each.
template <typename Vector, int Vectors, typename T, typename A = typename Vector::Number>
inline void sum_vectors(const Term<A>* terms, int count, int64_t first, int n, const Output<A>& output) {
    Vector sums[Vectors];
    for (int i = 0; i < Vectors; ++i) sums[i] = Vector::all(0);
    for (const Term<A>* term = terms; term < terms + count; ++term) {
        const T* row = static_cast<const T*>(term->row) + first;
        const Vector weight = Vector::all(term->weight);
        for (int i = 0; i < Vectors; ++i) sums[i] = sums[i].plus(weight, load<Vector>(row + i * n, n));
    }
    if (output.continued) {
        const A* partial = output.partial + first;
        for (int i = 0; i < Vectors; ++i) sums[i] = sums[i].plus(load<Vector>(partial + i * n, n), Vector::all(1));
    }
    if (!output.row) {
        for (int i = 0; i < Vectors; ++i) store(sums[i], output.partial + first + i * n, n);
        return;
    }
    if (output.base && output.divisor != 1) {
        for (int i = 0; i < Vectors; ++i) sums[i] = sums[i].over(Vector::all(output.divisor));
    }
    if (output.base) {
        const T* base = static_cast<const T*>(output.base) + first;
        for (int i = 0; i < Vectors; ++i) sums[i] = sums[i].plus(load<Vector>(base + i * n, n), Vector::all(1));
    }
    T* row = static_cast<T*>(output.row) + first;
    if (output.streamed) {
        for (int i = 0; i < Vectors; ++i) sums[i].stream(row + i * n);
    } else {
        for (int i = 0; i < Vectors; ++i) store(sums[i], row + i * n, n);
    }
}

template <typename Vector, typename T, typename A = typename Vector::Number>
void sum_rows(const Term<A>* terms, int count, int64_t channels, const Output<A>& output) {
    constexpr int lanes = Vector::lanes, most = 8;  // vectors of sums that stay in registers, and hide the latency
    int64_t at = 0;
    for (; at + most * lanes <= channels; at += most * lanes) {
        sum_vectors<Vector, most, T>(terms, count, at, lanes, output);
    }
    for (; at + lanes <= channels; at += lanes) sum_vectors<Vector, 1, T>(terms, count, at, lanes, output);
    if (at < channels) sum_vectors<Vector, 1, T>(terms, count, at, static_cast<int>(channels - at), output);
}
