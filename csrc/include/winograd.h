// 3 x 3 convolutions of patches with fewer products than taps, on a CPU: what lies around the matrix products, as
// convolution.cpp calls it. Raw pointers, no header of PyTorch, no allocation but a few dozen numbers.
//
// Along each axis two outputs are made from four inputs by four products in place of six, Winograd's F(2, 3); where the
// number of cells is odd the last one takes the two taps inside. A product is one of an input combination, a
// combination of the kernel's taps, of which there are kParts, and signs with which it enters outputs. Over both axes
// that makes kParts * kParts matrix products over 14 * 14 rows for a patch of 7 x 7, in place of 19 * 19. (Lavin and
// Gray, Fast Algorithms for Convolutional Neural Networks, 2016.)
//
// Patches are [regions, size, size, channels], kernels [outputs, 3, 3, channels], all float32 and packed.
#pragma once

#include <cstdint>
#include <vector>

#include "types.h"

namespace irnet::cpu {

constexpr int kParts = 5;

struct Winograd {
    // A cell of a patch along one axis and its sign; a sign of 0 is no cell.
    struct Signed {
        int cell, sign;
    };
    struct Product {
        Signed inputs[2], outputs[2];
    };

    Winograd(Capability capability, int size);
    int count(int part) const { return static_cast<int>(products[part].size()); }

    Capability capability;
    int size;                               // of a patch
    std::vector<Product> products[kParts];  // along one axis, by the combination of taps that they take
};

// The rows that enter the matrix product for parts i and j: [regions, count(i), count(j), channels], combinations of
// cells of patches, as the products' inputs or, for a gradient, as their outputs take them. Items are regions.
void winograd_rows(const Winograd& winograd, int i, int j, bool as_outputs, int64_t channels, const float* patches,
                   float* rows, ThreadRange regions);
// The combination i, j of kernels: [outputs, channels]; of kernels rotated by 180 degrees if `rotated`. Items
// are outputs.
void winograd_kernels(const Winograd& winograd, int i, int j, bool rotated, int64_t channels, const float* kernels,
                      float* combination, ThreadRange outputs);
// Adds to patches what the matrix products for i and all j give, `products[j]` [regions, count(i), count(j), channels].
// The first time, i == 0, nothing is there yet but `bias`, which may be null. Items are regions.
void winograd_outputs(const Winograd& winograd, int i, int64_t channels, const float* const* products,
                      const float* bias, float* patches, ThreadRange regions);
// Adds to the gradient of kernels those of their combinations for i and all j, `combinations[j]` [outputs, channels];
// the first time, i == 0, it is set. Items are outputs.
void winograd_kernels_gradient(const Winograd& winograd, int i, int64_t channels, const float* const* combinations,
                               float* kernels, ThreadRange outputs);

}  // namespace irnet::cpu
