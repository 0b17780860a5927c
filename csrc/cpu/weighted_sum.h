// The one loop in which most kernels spend their time on a CPU: a weighted sum of rows of channels.
#pragma once

#include <cstdint>

#include "types.h"

namespace irnet::cpu {

// A row of channels and its weight. A: float, or double for f64.
template <typename A>
struct Term {
    const void* row;
    A weight;
};

// What becomes of a sum.
template <typename A>
struct Output {
    void* row;         // where the rounded result goes; null: the sum goes to `partial`, unrounded
    const void* base;  // null, or the row to which the sum, divided by `divisor`, is added
    A divisor;
    A* partial;
    bool continued;  // whether what is in `partial` is added to the sum
    bool streamed;   // past the caches: rows are whole vectors, aligned, and end_stream() comes before others read them
};

template <typename A>
using WeightedSum = void (*)(const Term<A>* terms, int count, int64_t channels, const Output<A>& output);

// The function for rows of this dtype; all rows have `channels` numbers. Terms are added in their order, each by one
// fused multiply-add where the processor has it: bits depend on the terms and the instruction set alone.
template <typename A>
WeightedSum<A> weighted_sum(Dtype dtype, Capability capability);

}  // namespace irnet::cpu
