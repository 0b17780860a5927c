// How a map is written that is a sum over regions: the frame of crop_resize's gradient and of paste_mean.
//
// A block has a tile of cells. It lists the regions that reach the tile and then, for as many cells at a time as it has
// rows of threads, the terms of each cell's sum: where to load from, and with what weights. All that a thread does for
// a term is to load, to widen and to add. Each sum is made by one thread in an order that only the image's boxes
// determine: no atomics, and the same bits always.
#pragma once

#include "roi_blocks.cuh"

namespace irnet::cuda {

constexpr int kTileThreads = 256;
constexpr int kTileWarps = kTileThreads / kWarp;
constexpr int kTile = 8;  // cells along each side of a tile
constexpr int kTileCells = kTile * kTile;
constexpr int kTileLines = 2 * kTile;  // of a tile: its rows, then its columns
constexpr int kList = kWarp;           // items that a block lists at once: one for each thread of a warp
constexpr int kTermBytes = 16 * 1024;  // for terms that are kept at once
constexpr int kMakers = 8;             // threads that make the terms of a cell, each those of some items
constexpr int kItemsPerMaker = kList / kMakers;

// The part of a map that a block writes, and the regions of its image.
struct Tile {
    int64_t first;  // the number of its first cell among all of the maps
    Range y, x;
    Owned regions;
    int64_t candidates;  // regions or parts of them that may have terms
};

// Cell `index` of a tile.
struct Cell {
    int row, column;
};

__device__ __forceinline__ Cell tile_cell(unsigned index) {
    return {static_cast<int>(index / kTile), static_cast<int>(index % kTile)};
}

__host__ __device__ __forceinline__ unsigned tiles(int cells, int side) { return (cells + side - 1u) / side; }

// `parts` are those of a region.
__device__ __forceinline__ Tile tile(const RoiShape& shape, unsigned index, const int64_t* ptr, int64_t parts) {
    const unsigned across = tiles(shape.width, kTile), down = tiles(shape.height, kTile), image = index / across / down;
    const int x = index % across * kTile, y = index / across % down * kTile;
    const Owned regions = owned(ptr, image, shape.regions);
    return {(int64_t{image} * shape.height + y) * shape.width + x,
            {y, min(y + kTile, shape.height)},
            {x, min(x + kTile, shape.width)},
            regions,
            (regions.end - regions.begin) * parts};
}

// Whether something between two positions, give or take `slack`, may touch cells of a range.
template <typename A>
__device__ __forceinline__ bool reaches(A from, A to, A slack, Range cells) {
    return fmin(from, to) - slack < A(cells.end) && fmax(from, to) + slack > A(cells.begin - 1);
}

// Up to kList candidates, in order.
struct List {
    int count;
    int hits[kTileWarps];  // by each warp
    int64_t next;          // the first candidate that was not looked at
    int64_t items[kList];
};

// Lists the candidates from `next` on for which `test` holds. For all threads of the block, which then may read the
// list.
template <typename Test>
__device__ void list_candidates(List& list, int64_t next, int64_t candidates, Test test) {
    const int thread = thread_index(), warp = thread / kWarp, lane = thread % kWarp;
    for (int count = 0; next < candidates && count < kList; next = list.next, count = list.count) {
        const bool hit = next + thread < candidates && test(next + thread);
        const unsigned hits = __ballot_sync(~0u, hit);
        __syncthreads();  // what was listed before has been read
        if (lane == 0) list.hits[warp] = __popc(hits);
        if (thread == 0) list.next = min(next + kTileThreads, candidates);
        __syncthreads();
        int rank = count + __popc(hits & ((1u << lane) - 1)), total = count;
        for (int i = 0; i < kTileWarps; ++i) {
            rank += i < warp ? list.hits[i] : 0;
            total += list.hits[i];
        }
        if (hit && rank < kList) list.items[rank] = next + thread;
        if (hit && rank == kList) list.next = next + thread;
        if (thread == 0) list.count = min(total, kList);
        __syncthreads();
    }
}

// The terms of as many cells as a block has rows of threads.
template <typename Term>
struct Terms {
    Term terms[kTermBytes / sizeof(Term)];
    int counts[kTileThreads / kMakers];
    int most;  // for a cell; one thread sets it

    __device__ __forceinline__ Term* of_cell(unsigned index) { return terms + index * most; }
};

// Makes the terms of the cells from `first_cell` on: for each those from number `first` on, as many as are kept, in the
// order of the listed items. Says whether a cell has more. For all threads of the block.
template <typename Source>
__device__ __forceinline__ bool make_terms(Terms<typename Source::Term>& terms, const Source& source,
                                           unsigned first_cell, int first) {
    using Term = typename Source::Term;
    const unsigned index = thread_index() / kMakers, maker = thread_index() % kMakers;
    __syncthreads();  // those before have been read
    bool more = false;
    if (index < blockDim.y) {
        const Cell cell = tile_cell(first_cell + index);
        const unsigned items = source.items(cell) & ((1u << kItemsPerMaker) - 1) << maker * kItemsPerMaker;
        int count = 0;
#pragma unroll 1
        for (unsigned bits = items; bits; bits &= bits - 1) count += source.count(__ffs(bits) - 1, cell);
        int end = count;
#pragma unroll
        for (unsigned distance = 1; distance < kMakers; distance *= 2) {
            const int before = __shfl_up_sync(~0u, end, distance, kMakers);
            if (maker >= distance) end += before;
        }
        const int most = terms.most;
        int number = end - count - first;
        Term* const own = terms.of_cell(index);
#pragma unroll 1
        for (unsigned bits = items; bits; bits &= bits - 1) {
            source.make(__ffs(bits) - 1, cell, [&](const Term& term) {
                if (number >= 0 && number < most) own[number] = term;
                ++number;
            });
        }
        if (maker == kMakers - 1) terms.counts[index] = min(max(end - first, 0), most);
        more = end - first > most;
    }
    return __syncthreads_or(more);
}

// Sums and writes the tile. A Source says
//   list(list, next)        lists what reaches the tile from candidate `next` on, and prepares for the following
//   items(cell)             the items of the list that have terms for a cell, as bits
//   count(item, cell)       how many an item has
//   make(item, cell, emit)  emits them
//   Sums                    what is summed for a cell
//   add(sums, terms, count) adds terms
//   finish(sums, cell)      writes the cell
template <typename Source>
__device__ __forceinline__ void write_tile(const Source& source, List& list, Terms<typename Source::Term>& terms,
                                           const Tile& tile, bool has_channels) {
    if (thread_index() == 0) terms.most = kTermBytes / sizeof(typename Source::Term) / blockDim.y;
    __syncthreads();
    bool whole = false;  // what is listed is all there is
#pragma unroll 1
    for (unsigned first = 0; first < kTileCells; first += blockDim.y) {
        const Cell cell = tile_cell(first + threadIdx.y);
        const bool exists =
            has_channels && tile.y.begin + cell.row < tile.y.end && tile.x.begin + cell.column < tile.x.end;
        typename Source::Sums sums;
#pragma unroll 1
        for (int64_t next = 0; next < tile.candidates; next = list.next) {
            if (!whole) source.list(list, next);
            whole = whole || (next == 0 && list.next == tile.candidates);
            bool more = true;
#pragma unroll 1
            for (int number = 0; more; number += terms.most) {
                more = make_terms(terms, source, first, number);
                if (exists) source.add(sums, terms.of_cell(threadIdx.y), terms.counts[threadIdx.y]);
            }
        }
        if (exists) source.finish(sums, cell);
    }
}

// With a block for every tile of the maps.
template <typename C, typename Kernel, typename... Arguments>
int launch_on_tiles(Kernel kernel, const RoiShape& shape, void* stream, Arguments... arguments) {
    const Split split(shape.channels / C::width, C::count, kMakers);
    const int64_t blocks = shape.images * tiles(shape.height, kTile) * tiles(shape.width, kTile);
    return launch(kernel, shape, split, blocks, kTileThreads / split.lanes, stream, arguments...);
}

}  // namespace irnet::cuda
