// What is fused around the convolutions of conv_gru on a CPU, as gru.cpp calls it: raw pointers, no header of PyTorch,
// no allocation. The convolutions themselves are PyTorch's.
//
// Patches are [regions, size, size, channels], packed (channels_last): rows of channels, `size` * `size` for a region.
// x is the input, h the state, r and u the gates "reset" and "update", n the candidate; the formula is in
// kernels/irnet_kernels/gru/reference.py. Sums are made in float, in double for f64: "numbers".
#pragma once

#include <cstdint>

#include "types.h"

namespace irnet::cpu {

constexpr int kTaps = 9;             // of a convolution of 3 x 3: rows, then columns
constexpr int kColumns = 2 * kTaps;  // reset for every tap, then update

struct Gru {
    Dtype dtype;  // bf16: only gates of one channel, on a processor that multiplies it (AVX512-BF16); f16: not at all
    Capability capability;
    int64_t channels;
    int size;   // of a patch
    bool wide;  // whether gates have a number for every channel, or one for all
};

// The product of every row of x and h with the weights of gates of one channel, [kColumns, channels]: `products`
// [rows, kColumns], numbers. Items are rows.
void gru_products(const Gru& gru, const void* inputs, const void* state, const void* weights_x, const void* weights_h,
                  void* products, ThreadRange rows);

// A gate of one channel is a shifted sum of these products. Writes r, u [rows] and r.h. Items are regions.
void gru_gates(const Gru& gru, const void* products, double reset_bias, double update_bias, const void* state,
               void* reset, void* update, void* reset_state, ThreadRange regions);

// `candidate` holds what goes into the ReLU, but for what `change` holds if `two_parts`. It becomes n, `change` becomes
// u.(n - h). Items are rows.
void gru_change(const Gru& gru, bool two_parts, const void* state, const void* update, void* candidate, void* change,
                ThreadRange rows);

// What a gradient is given, and what of it does not need the convolutions' gradients.
struct GruGradient {
    const void *grad, *state, *candidate, *reset, *update;
    void* pre_candidate;  // gradient before the ReLU: g.u where n > 0
    void* reset_state;    // r.h
    void* pre_update;     // numbers, gradient before the sigmoid: g.(n - h).u.(1 - u), its sum where gates are not wide
};

// Items are rows.
void gru_backward(const Gru& gru, const GruGradient& gradient, ThreadRange rows);

// The rest of the gradient for gates of one channel. `weights_x`, `weights_h` are those of gru_products. `d_inputs`
// holds what n's convolution passes to x, `d_state` what it passes to r.h; both become the whole gradients. Also writes
// the gates' gradients before the sigmoid, `pre_reset` [rows] as numbers, and both shifted by every tap, `columns`
// [rows, kColumns]. Items are regions.
void gru_gates_backward(const Gru& gru, const GruGradient& gradient, const void* weights_x, const void* weights_h,
                        void* d_inputs, void* d_state, void* pre_reset, void* columns, ThreadRange regions);

}  // namespace irnet::cpu
