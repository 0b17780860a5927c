// 3 x 3 convolutions with fewer products than taps, on a CPU: what lies around the matrix products, as convolution.cpp
// calls it. Raw pointers, no header of PyTorch, no allocation but a few numbers for every row and column of a map.
//
// Along each axis two outputs are made from four inputs by four products in place of six, Winograd's F(2, 3); where the
// number of cells is odd the last one takes the two taps inside. A product is one of an input combination, a
// combination of the kernel's taps, of which there are kParts, and signs with which it enters outputs. Over both axes
// that makes kParts * kParts matrix products over 14 * 14 rows for a map of 7 x 7, in place of 19 * 19. (Lavin and
// Gray, Fast Algorithms for Convolutional Neural Networks, 2016.)
//
// Maps are [maps, height, width, channels], kernels [outputs, 3, 3, channels], all float32 and packed. Threads share
// the lines of rows or cells along the width.
#pragma once

#include <cstdint>
#include <vector>

#include "types.h"

namespace irnet::cpu {

constexpr int kParts = 5;

struct Winograd {
    // A cell of a map along one axis, or a product, and its sign; a sign of 0 is none.
    struct Signed {
        int at, sign;
    };
    struct Product {
        Signed inputs[2], outputs[2];
    };
    // Products along one axis, by the combination of taps that they take.
    struct Axis {
        explicit Axis(int size);
        int count(int part) const { return static_cast<int>(products[part].size()); }

        int size;  // in cells
        std::vector<Product> products[kParts];
        std::vector<Signed> sources[kParts];  // the product of a part that enters each cell
    };

    Winograd(Capability capability, int height, int width) : capability(capability), down(height), across(width) {}
    // Rows of the matrix product for parts i and j, for every map.
    int64_t rows(int i, int j) const { return int64_t{down.count(i)} * across.count(j); }

    Capability capability;
    Axis down, across;
};

// The rows that enter the matrix product for parts i and j: [maps, down.count(i), across.count(j), channels],
// combinations of cells of maps, as the products' inputs or, for a gradient, as their outputs take them. Items are the
// maps' down.count(i) lines of rows.
void winograd_rows(const Winograd& winograd, int i, int j, bool as_outputs, int64_t channels, const float* maps,
                   float* rows, ThreadRange lines);
// The combination i, j of kernels: [outputs, channels]; of kernels rotated by 180 degrees if `rotated`. Items
// are outputs.
void winograd_kernels(const Winograd& winograd, int i, int j, bool rotated, int64_t channels, const float* kernels,
                      float* combination, ThreadRange outputs);
// Adds to maps what the matrix products for i and all j give, `products[j]` [maps, down.count(i), across.count(j),
// channels]. The first time, i == 0, nothing is there yet but `bias`, which may be null. Items are the maps' lines of
// cells.
void winograd_outputs(const Winograd& winograd, int i, int64_t channels, const float* const* products,
                      const float* bias, float* maps, ThreadRange lines);
// Adds to the gradient of kernels those of their combinations for i and all j, `combinations[j]` [outputs, channels];
// the first time, i == 0, it is set. Items are outputs.
void winograd_kernels_gradient(const Winograd& winograd, int i, int64_t channels, const float* const* combinations,
                               float* kernels, ThreadRange outputs);

}  // namespace irnet::cpu
