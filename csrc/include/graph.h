// The kernels of propagate and propagate_regions as graph.cpp calls them: weighted sums of rows of x, one for every
// node or region and every edge type. The products with the weights are PyTorch's.
//
// Sums are made in float, in double for f64. A row is summed by one thread, in the order of its edges.
#pragma once

#include <cstdint>

#include "types.h"

namespace irnet::cpu {

// The edges of all types in compressed rows, type * nodes + node; `indices` are nodes.
struct Edges {
    Capability capability;
    int64_t nodes, types;
    const int64_t* indptr;
    const int32_t* indices;
    const void* values;
    Dtype values_dtype;  // f32 or f64
};

// A row of an image.
struct EdgeRow {
    int64_t image, row;
};

// Rows of channels, of x, sums or products.
struct Channels {
    Dtype dtype;
    int64_t count;
};

// For each of `rows` the sum of x [images, nodes, channels] over its edges, one behind the other. Items are `rows`.
void aggregate(const Edges& edges, Channels channels, const EdgeRow* rows, const void* x, void* out, ThreadRange range);

// For every node of every image a sum of products, which only some rows have: `positions` [images, types * nodes] says
// where, -1 where there is none. Of the node's own rows; or over the edges of its rows, of their sources' rows. Items
// are nodes of images.
void add_types(const Edges& edges, Channels channels, const int32_t* positions, const void* products, void* out,
               ThreadRange range);
void add_edges(const Edges& edges, Channels channels, const int32_t* positions, const void* products, void* out,
               ThreadRange range);

constexpr int kRegionTypes = 5;  // left, right, above, below, overlap

struct Regions {
    Dtype dtype;  // of x and of what is made
    Capability capability;
    int64_t images, channels;
    const int64_t* ptr;  // rises from 0 to the number of regions
    const float* boxes;
    double bandwidth;
    void* data;  // data_bytes() for each region: its box and centre, and the sums of its rows of adjacency
};

// The adjacency of kernels/irnet_kernels/graph/reference.py, its transpose, its derivative to the bandwidth.
enum class Adjacency { rows, columns, slope };

int64_t data_bytes();
// Fill `data`; the sums are needed for Adjacency::columns only. Items are regions.
void prepare_regions(const Regions& regions, ThreadRange range);
void sum_adjacency(const Regions& regions, ThreadRange range);

// The products of all types' adjacency with x, of the regions from `first` on: `out` [.., kRegionTypes, channels].
// Items are regions.
void aggregate_regions(const Regions& regions, Adjacency adjacency, int64_t first, const void* x, void* out,
                       ThreadRange range);

}  // namespace irnet::cpu
