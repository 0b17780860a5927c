// The kernels of crop_resize and paste_mean for GPUs, and their launches; no header of PyTorch, no allocation, no
// waiting.
//
// Threads along x share the channels, threads along y the cells or samples: with 32 vectors of channels or more a warp
// is at one cell or sample, so its branches and weights are the same in all threads. A block that writes patches has
// one region; a block that writes a map has a tile of cells and lists the regions that reach it. Each sum is made by
// one thread in an order that only the image's boxes determine: no atomics, and the same bits always. Strides are in
// bytes.

#include <cuda_runtime.h>

#include <climits>
#include <initializer_list>

#include "channels.cuh"
#include "geometry.h"
#include "roi.h"

namespace irnet::cuda {

namespace {

constexpr int kTileThreads = 256;      // of a block that writes a tile of a map
constexpr int kPatchThreads = 224;     // of a block that writes a patch, at most: a warp for each row of 7 x 7 samples
constexpr int kTile = 8;               // cells along each side of a tile
constexpr int kPiece = 8;              // samples along each side of a piece of a patch
constexpr int kLines = 2 * kPiece;     // of a piece: its rows, then its columns
constexpr int kCellLines = 2 * kTile;  // the same of a tile
constexpr int kList = kWarp;           // pieces or regions that a block lists at once: one for each thread of a warp
constexpr int kTerms = 8;     // after so many a sum of more than 16 bits goes into a sum of sums: that rounds less
constexpr int kSamples = 32;  // columns of a patch whose positions a block keeps
constexpr int kRows = 256, kColumns = 128, kCells = 2048;  // of a map, whose positions and shares a block keeps

__device__ int thread_index() { return threadIdx.y * blockDim.x + threadIdx.x; }

// The block's number among those with the same channels, and where the channels of this thread are in a cell or sample.
struct Place {
    unsigned index;
    int64_t offset;
    bool exists;
};

template <typename C>
__device__ Place place(int64_t channels, unsigned chunks) {
    const int64_t vector = int64_t{blockIdx.x % chunks} * blockDim.x * C::count + threadIdx.x;
    return {blockIdx.x / chunks, vector * C::width * C::bytes, vector * C::width < channels};
}

// The regions of an image: what of them lies in [0, regions], whatever ptr holds.
struct Owned {
    int64_t begin, end;
};

__device__ Owned owned(const int64_t* ptr, int64_t image, int64_t regions) {
    const int64_t begin = min(max(ptr[image], int64_t{0}), regions);
    return {begin, max(begin, min(ptr[image + 1], regions))};
}

// The image that owns a region, or -1.
__device__ int64_t find_image(const int64_t* ptr, int64_t images, int64_t region) {
    int64_t low = 0, high = images;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (ptr[middle] <= region ? low : high) = middle;
    }
    return images > 0 && ptr[low] <= region && region < ptr[low + 1] ? low : -1;
}

// A position along one axis of an array: how far its low neighbour is from the array's first, and the weights of both.
template <typename A>
struct alignas(16) Step {
    int64_t offset;
    A low_weight, high_weight;
};

// Adds the neighbours of a position that have weight; no others are read.
template <typename C, typename A>
__device__ void add_neighbours(Sum<C>& sum, const Step<A>& y, const Step<A>& x, const char* first, int64_t row_stride,
                               int64_t stride) {
    const char* low = first + y.offset + x.offset;
    const A low_low = y.low_weight * x.low_weight, low_high = y.low_weight * x.high_weight;
    const A high_low = y.high_weight * x.low_weight, high_high = y.high_weight * x.high_weight;
    if (high_high != A(0)) {
        const C a = C::load(low), b = C::load(low + stride);
        const C c = C::load(low + row_stride), d = C::load(low + row_stride + stride);
        sum.add(low_low, a);
        sum.add(low_high, b);
        sum.add(high_low, c);
        sum.add(high_high, d);
    } else if (low_low != A(0)) {
        sum.add(low_low, C::load(low));
        if (low_high != A(0)) sum.add(low_high, C::load(low + stride));
        if (high_low != A(0)) sum.add(high_low, C::load(low + row_stride));
    }
}

// crop_resize. A block has one region, each y of it rows of the patch.
template <typename C>
__global__ void __launch_bounds__(kPatchThreads, C::count == 1 ? 5 : 4)
    crop_resize_forward_kernel(RoiShape shape, unsigned chunks, const char* __restrict__ features,
                               const float* __restrict__ boxes, const int64_t* __restrict__ ptr, bool clamp,
                               char* __restrict__ out) {
    using A = typename C::Number;
    __shared__ int64_t owner;
    __shared__ Step<A> columns[kSamples];
    const Place at = place<C>(shape.channels, chunks);
    const int thread = thread_index(), threads = blockDim.x * blockDim.y;
    const int64_t region = at.index, stride = shape.channels * C::bytes, row_stride = shape.width * stride;
    const float* box = boxes + 4 * region;
    for (int first = 0; first < shape.size; first += kSamples) {
        const int samples = min(kSamples, shape.size - first);
        __syncthreads();  // those before have been read
        for (int j = thread; j < samples; j += threads) {
            const Tap<A> tap = crop_tap<A>(box[0], box[2], first + j, shape.size, shape.width, clamp);
            columns[j] = {tap.low * stride, tap.low_weight, tap.high_weight};
        }
        if (first == 0 && thread == threads - 1) owner = find_image(ptr, shape.images, region);
        __syncthreads();
        for (int i = threadIdx.y; i < shape.size && at.exists; i += blockDim.y) {
            Tap<A> tap = crop_tap<A>(box[1], box[3], i, shape.size, shape.height, clamp);
            if (owner < 0) tap = {-1, -1, A(0), A(0)};
            const Step<A> y = {(owner * shape.height + tap.low) * row_stride, tap.low_weight, tap.high_weight};
            char* to = out + ((region * shape.size + i) * shape.size + first) * stride + at.offset;
#pragma unroll 1
            for (int j = 0; j < samples; ++j, to += stride) {
                Sum<C> sum;
                add_neighbours(sum, y, columns[j], features + at.offset, row_stride, stride);
                sum.store(to);
            }
        }
    }
}

// The part of a map that a block writes, and the regions of its image.
struct Tile {
    int64_t image;
    Range y, x;
    Owned regions;
};

__host__ __device__ __forceinline__ unsigned tiles(int cells) { return (cells + kTile - 1u) / kTile; }

__device__ Tile tile(const RoiShape& shape, unsigned index, const int64_t* ptr) {
    const unsigned across = tiles(shape.width), down = tiles(shape.height), image = index / across / down;
    const int x = index % across * kTile, y = index / across % down * kTile;
    return {
        image, {y, min(y + kTile, shape.height)}, {x, min(x + kTile, shape.width)}, owned(ptr, image, shape.regions)};
}

// Whether something between two positions, give or take `slack`, may touch cells of a range.
template <typename A>
__device__ bool reaches(A from, A to, A slack, Range cells) {
    return fmin(from, to) - slack < A(cells.end) && fmax(from, to) + slack > A(cells.begin - 1);
}

// Up to kList candidates, in order.
struct List {
    int count;
    int found[kTileThreads / kWarp];  // by each warp
    int64_t next;                     // the first candidate that was not looked at
    int64_t items[kList];
};

// Lists the candidates from `next` on for which `test` holds. For all threads of the block, which then may read the
// list.
template <typename Test>
__device__ void fill(List& list, int64_t next, int64_t candidates, Test test) {
    const int thread = thread_index(), warp = thread / kWarp, lane = thread % kWarp;
    for (int count = 0; next < candidates && count < kList; next = list.next, count = list.count) {
        const bool hit = next + thread < candidates && test(next + thread);
        const unsigned hits = __ballot_sync(~0u, hit);
        __syncthreads();  // what was listed before has been read
        if (lane == 0) list.found[warp] = __popc(hits);
        if (thread == 0) list.next = min(next + kTileThreads, candidates);
        __syncthreads();
        int rank = count + __popc(hits & ((1u << lane) - 1)), total = count;
        for (int i = 0; i < kTileThreads / kWarp; ++i) {
            rank += i < warp ? list.found[i] : 0;
            total += list.found[i];
        }
        if (hit && rank < kList) list.items[rank] = next + thread;
        if (hit && rank == kList) list.next = next + thread;
        if (thread == 0) list.count = min(total, kList);
        __syncthreads();
    }
}

// A row or column of samples of a piece: how far it is from the array's first one, and where it lies on the map.
template <typename A>
struct alignas(16) Line {
    int64_t offset;
    int low;
    A high_weight;

    __device__ bool touches(int cell) const { return cell == low || (cell == low + 1 && high_weight != A(0)); }
    __device__ A weight(int touched) const { return touched == low ? A(1) - high_weight : high_weight; }
};

// Pieces of patches, of at most kPiece x kPiece samples.
template <typename A>
struct Pieces {
    Line<A> lines[kList][kLines + 1];  // one more: a warp that reads one line of every piece meets all memory banks
    uchar2 ranges[kCellLines]
                 [kList];           // which lines touch a row or column of the tile: from the first to before the last
    unsigned touching[kCellLines];  // which pieces have such lines, as bits
};

// The gradient of crop_resize. A block has one tile, each y of it cells.
template <typename C>
__global__ void __launch_bounds__(kTileThreads, sizeof(typename C::Number) == 4 ? 4 : 3)
    crop_resize_backward_kernel(RoiShape shape, unsigned chunks, const char* __restrict__ grad,
                                const float* __restrict__ boxes, const int64_t* __restrict__ ptr, bool clamp,
                                char* __restrict__ out) {
    using A = typename C::Number;
    __shared__ Tile to;
    __shared__ List list;
    __shared__ Pieces<A> pieces;
    const Place at = place<C>(shape.channels, chunks);
    const int thread = thread_index(), warp = thread / kWarp, lane = thread % kWarp;
    if (thread == 0) to = tile(shape, at.index, ptr);
    __syncthreads();
    const int64_t stride = shape.channels * C::bytes;
    const int side = (shape.size - 1) / kPiece + 1;  // pieces along each side of a patch
    const int64_t candidates = (to.regions.end - to.regions.begin) * side * side;

    struct Piece {
        int64_t region;
        int row, column;
    };
    const auto piece = [&](int64_t candidate) -> Piece {
        if (side == 1) return {to.regions.begin + candidate, 0, 0};
        const int64_t rows = candidate / side;
        return {to.regions.begin + rows / side, static_cast<int>(rows % side) * kPiece,
                static_cast<int>(candidate % side) * kPiece};
    };
    // Whether samples of a piece may touch the tile: along an axis they lie between the first and the last one.
    const auto reaches_tile = [&](float low, float high, int first, int cells, Range range) {
        const A step = (A(high) - A(low)) / A(shape.size > 1 ? shape.size - 1 : 1);
        const int last = shape.size > 1 ? min(first + kPiece, shape.size) - 1 : 1;
        A from = A(low) + A(first) * step, end = A(low) + A(last) * step;
        if (clamp) {
            from = clip(from, A(0), A(cells - 1));
            end = clip(end, A(0), A(cells - 1));
        }
        return reaches(from, end, A(0), range);
    };
    const auto list_pieces = [&](int64_t next) {
        fill(list, next, candidates, [&](int64_t candidate) {
            const Piece p = piece(candidate);
            const float* box = boxes + 4 * p.region;
            return reaches_tile(box[1], box[3], p.row, shape.height, to.y) &&
                   reaches_tile(box[0], box[2], p.column, shape.width, to.x);
        });
#pragma unroll 1
        for (int i = thread; i < list.count * kLines; i += kTileThreads) {
            const int item = i / kLines, line = i % kLines;
            const bool is_row = line < kPiece;
            const Piece p = piece(list.items[item]);
            const float* box = boxes + 4 * p.region;
            const int sample = (is_row ? p.row : p.column) + line % kPiece;
            const int64_t before = is_row ? (p.region * shape.size + sample) * shape.size : sample;
            Tap<A> tap = {-1, -1, A(0), A(0)};
            if (sample < shape.size) {
                const int cells = is_row ? shape.height : shape.width;
                tap = crop_tap<A>(box[is_row], box[is_row + 2], sample, shape.size, cells, clamp);
            }
            pieces.lines[item][line] = {before * stride, tap.low, tap.high_weight};
        }
        __syncthreads();
#pragma unroll 1
        for (int line = warp; line < kCellLines; line += kTileThreads / kWarp) {
            const bool is_row = line < kTile;
            const int cell = (is_row ? to.y.begin : to.x.begin) + line % kTile;
            int begin = 0, end = 0;
#pragma unroll 1
            for (int k = 0; k < kPiece && lane < list.count; ++k) {
                if (!pieces.lines[lane][is_row ? k : kPiece + k].touches(cell)) continue;
                begin = end == 0 ? k : begin;
                end = k + 1;
            }
            pieces.ranges[line][lane] = make_uchar2(begin, end);
            const unsigned touching = __ballot_sync(~0u, end > 0);
            if (lane == 0) pieces.touching[line] = touching;
        }
        __syncthreads();
    };

    bool whole = false;  // what is listed is all there is
    for (unsigned first = 0; first < kTile * kTile; first += blockDim.y) {
        const unsigned row = (first + threadIdx.y) / kTile, column = (first + threadIdx.y) % kTile;
        const int y = to.y.begin + row, x = to.x.begin + column;
        const bool exists = at.exists && y < to.y.end && x < to.x.end;
        Sum<C> sum, total;
        int terms = 0;
        for (int64_t next = 0; next < candidates; next = list.next) {
            if (!whole) {
                list_pieces(next);
                whole = next == 0 && list.next == candidates;
            }
            if (!exists) continue;
            for (unsigned bits = pieces.touching[row] & pieces.touching[kTile + column]; bits; bits &= bits - 1) {
                const int item = __ffs(bits) - 1;
                const uchar2 rows = pieces.ranges[row][item], columns = pieces.ranges[kTile + column][item];
#pragma unroll 1
                for (int i = rows.x; i < rows.y; ++i) {
                    const Line<A> down = pieces.lines[item][i];
                    const A weight = down.weight(y);
                    const char* from = grad + at.offset + down.offset;
#pragma unroll 1
                    for (int j = columns.x; j < columns.y; ++j) {
                        const Line<A> right = pieces.lines[item][kPiece + j];
                        sum.add(weight * right.weight(x), C::load(from + right.offset));
                    }
                }
                terms += (rows.y - rows.x) * (columns.y - columns.x);
                if (C::bytes > 2 && terms >= kTerms) {
                    total.add(1, sum);
                    sum = {};
                    terms = 0;
                }
            }
        }
        if (C::bytes > 2) sum.add(1, total);
        if (exists) sum.store(out + ((to.image * shape.height + y) * shape.width + x) * stride + at.offset);
    }
}

// Regions, and where the rows and columns of a tile lie on their patches.
template <typename A>
struct Regions {
    Step<A> cells[kCellLines][kList];
    unsigned covering[kCellLines];  // which regions cover a row or column, as bits
};

// sum / count to the bit, but where it is subnormal, at a third of its cost: `inverse` is 1 / count, and the rest
// corrects the last bit.
template <typename A>
__device__ A divide(A sum, A count, A inverse) {
    const A quotient = sum * inverse, rest = fma(-quotient, count, sum);
    return rest == rest ? fma(rest, inverse, quotient) : quotient;  // an infinity has no rest
}

// paste_mean. A block has one tile, each y of it cells.
template <typename C>
__global__ void __launch_bounds__(kTileThreads, C::count == 1 && sizeof(typename C::Number) == 4 ? 4 : 3)
    paste_mean_forward_kernel(RoiShape shape, unsigned chunks, const char* __restrict__ memory,
                              const char* __restrict__ patches, const float* __restrict__ boxes,
                              const int64_t* __restrict__ ptr, char* __restrict__ out) {
    using A = typename C::Number;
    __shared__ Tile to;
    __shared__ List list;
    __shared__ Regions<A> regions;
    const Place at = place<C>(shape.channels, chunks);
    const int thread = thread_index(), warp = thread / kWarp, lane = thread % kWarp;
    if (thread == 0) to = tile(shape, at.index, ptr);
    __syncthreads();
    const int64_t stride = shape.channels * C::bytes, row_stride = shape.size * stride;
    const int64_t candidates = to.regions.end - to.regions.begin;
    // Whether a region may cover cells of the tile: kTolerance and roundings move its edges by less than this slack.
    const auto reaches_tile = [](A low, A high, Range range) {
        return reaches(low, high, A(2 * kTolerance) * (fabs(low) + fabs(high)), range);
    };
    const auto list_regions = [&](int64_t next) {
        fill(list, next, candidates, [&](int64_t candidate) {
            const float* box = boxes + 4 * (to.regions.begin + candidate);
            return reaches_tile(box[1], box[3], to.y) && reaches_tile(box[0], box[2], to.x);
        });
#pragma unroll 1
        for (int line = warp; line < kCellLines; line += kTileThreads / kWarp) {
            const bool is_row = line < kTile;
            bool covers = false;
            if (lane < list.count) {
                const int64_t region = to.regions.begin + list.items[lane];
                const float* box = boxes + 4 * region;
                const int cell = (is_row ? to.y.begin : to.x.begin) + line % kTile;
                const Tap<A> tap = paste_tap<A>(box[is_row], box[is_row + 2], cell, shape.size);
                const int64_t before = is_row ? (region * shape.size + tap.low) * shape.size : tap.low;
                regions.cells[line][lane] = {before * stride, tap.low_weight, tap.high_weight};
                covers = tap.low >= 0;
            }
            const unsigned covering = __ballot_sync(~0u, covers);
            if (lane == 0) regions.covering[line] = covering;
        }
        __syncthreads();
    };

    bool whole = false;  // what is listed is all there is
    for (unsigned first = 0; first < kTile * kTile; first += blockDim.y) {
        const unsigned row = (first + threadIdx.y) / kTile, column = (first + threadIdx.y) % kTile;
        const int y = to.y.begin + row, x = to.x.begin + column;
        const bool exists = at.exists && y < to.y.end && x < to.x.end;
        Sum<C> sum;
        int64_t count = 0;
        for (int64_t next = 0; next < candidates; next = list.next) {
            if (!whole) {
                list_regions(next);
                whole = next == 0 && list.next == candidates;
            }
            if (!exists) continue;
            unsigned bits = regions.covering[row] & regions.covering[kTile + column];
            for (count += __popc(bits); bits; bits &= bits - 1) {
                const int item = __ffs(bits) - 1;
                add_neighbours(sum, regions.cells[row][item], regions.cells[kTile + column][item], patches + at.offset,
                               row_stride, stride);
            }
        }
        if (!exists) continue;
        const int64_t cell = ((to.image * shape.height + y) * shape.width + x) * stride + at.offset;
        const C before = C::load(memory + cell);
        if (count == 0) {
            before.store(out + cell);  // to the bit
            continue;
        }
        A base[C::size];
        before.unpack(base);
        const A divisor = A(count), inverse = A(1) / divisor;
#pragma unroll
        for (int i = 0; i < C::size; ++i) sum.numbers[i] = base[i] + divide(sum.numbers[i], divisor, inverse);
        sum.store(out + cell);
    }
}

// A part of the cells that a region covers, its columns in the order of their positions on the patch.
template <typename A>
struct Part {
    int height, width;
    int64_t first;                          // how far its first cell is from the array's first
    Tap<A> rows[kRows], columns[kColumns];  // where they lie on the patch
    unsigned covering[kRows + kColumns];    // for each row and then column, which of 32 regions cover it, as bits
    A shares[kCells];                       // 1 / the number of regions that cover the cell
};

// The gradient of paste_mean to the patches. A block has one region, each y of it rows of the patch.
template <typename C>
__global__ void __launch_bounds__(kPatchThreads, 2)
    paste_mean_backward_kernel(RoiShape shape, unsigned chunks, const char* __restrict__ grad,
                               const float* __restrict__ boxes, const int64_t* __restrict__ ptr,
                               char* __restrict__ out) {
    using A = typename C::Number;
    __shared__ int64_t owner;
    __shared__ Owned own;  // the regions of that image
    __shared__ Range covered[2];
    __shared__ Part<A> part;
    const Place at = place<C>(shape.channels, chunks);
    const int thread = thread_index(), threads = blockDim.x * blockDim.y, warp = thread / kWarp, lane = thread % kWarp;
    const int64_t region = at.index, stride = shape.channels * C::bytes, row_stride = shape.width * stride;
    const float* box = boxes + 4 * region;
    const int step = box[2] < box[0] ? -1 : 1;  // from column to column
    if (thread < 2) {
        const bool is_row = thread == 0;
        const int cells = is_row ? shape.height : shape.width;
        covered[thread] = paste_range<A>(box[is_row], box[is_row + 2], cells, shape.size);
    }
    if (thread == threads - 1) {
        owner = find_image(ptr, shape.images, region);
        own = owner < 0 ? Owned{0, 0} : owned(ptr, owner, shape.regions);
    }
    __syncthreads();

    // Prepares the part that begins at a row and column of the covered cells: all rows and as many columns as fit or,
    // where there are too many rows, some rows of one column. Each part ends where the next one begins.
    const auto prepare = [&](int top, int left) {
        const int height = covered[0].end - covered[0].begin, width = covered[1].end - covered[1].begin;
        const int rows = min(kRows, height - top);
        const int columns = height > kRows ? 1 : min(min(kColumns, kCells / height), width - left);
        const int y = covered[0].begin + top, x = step < 0 ? covered[1].end - 1 - left : covered[1].begin + left;
        __syncthreads();  // the part before has been read
        if (thread == 0) {
            part.height = rows;
            part.width = columns;
            part.first = (owner * shape.height + y) * row_stride + x * stride;
        }
#pragma unroll 1
        for (int k = thread; k < rows + columns; k += threads) {
            const bool is_row = k < rows;
            const int cell = is_row ? y + k : x + step * (k - rows);
            (is_row ? part.rows[k] : part.columns[k - rows]) =
                paste_tap<A>(box[is_row], box[is_row + 2], cell, shape.size);
        }
#pragma unroll 1
        for (int k = thread; k < rows * columns; k += threads) part.shares[k] = A(0);
#pragma unroll 1
        for (int64_t other = own.begin; other < own.end; other += kWarp) {
            const float* edges = boxes + 4 * min(other + lane, own.end - 1);
#pragma unroll 1
            for (int k = warp; k < rows + columns; k += threads / kWarp) {
                const bool is_row = k < rows;
                const int cell = is_row ? y + k : x + step * (k - rows);
                const Tap<A> tap = paste_tap<A>(edges[is_row], edges[is_row + 2], cell, shape.size);
                const unsigned covering = __ballot_sync(~0u, other + lane < own.end && tap.low >= 0);
                if (lane == 0) part.covering[k] = covering;
            }
            __syncthreads();
#pragma unroll 1
            for (int k = thread; k < rows * columns; k += threads) {
                part.shares[k] += A(__popc(part.covering[k / columns] & part.covering[rows + k % columns]));
            }
            __syncthreads();
        }
#pragma unroll 1
        for (int k = thread; k < rows * columns; k += threads) part.shares[k] = A(1) / part.shares[k];
        __syncthreads();
    };

    for (int first = 0; first < shape.size; first += blockDim.y) {
        const int i = first + threadIdx.y;
        const bool exists = at.exists && i < shape.size;
        Sum<C> low, high;  // of samples j and j + 1
        int j = 0;
        const auto advance = [&] {
            low.store(out + ((region * shape.size + i) * shape.size + j) * stride + at.offset);
            low = high;
            high = {};
            ++j;
        };
        const int height = owner < 0 ? 0 : covered[0].end - covered[0].begin;
        const int width = height == 0 ? 0 : covered[1].end - covered[1].begin;
        for (int left = 0; left < width; left += part.width) {
            for (int top = 0; top < height; top += part.height) {
                prepare(top, left);
                if (!exists) continue;
                int begin = 0;
                while (begin < part.height && part.rows[begin].weight(i) == A(0)) ++begin;
                int end = begin;
                while (end < part.height && part.rows[end].weight(i) != A(0)) ++end;
                const char* from = grad + part.first + begin * row_stride + at.offset;
#pragma unroll 1
                for (int u = 0; u < part.width; ++u, from += step * stride) {
                    Sum<C> column;
                    const char* cell = from;
#pragma unroll 2
                    for (int v = begin; v < end; ++v, cell += row_stride) {
                        const Tap<A> down = part.rows[v];
                        const A share = part.shares[v * part.width + u];
                        column.add((i == down.low ? down.low_weight : down.high_weight) * share, C::load(cell));
                    }
                    const Tap<A> right = part.columns[u];
                    while (j < right.low) advance();
                    low.add(right.low_weight, column);
                    if (right.high_weight != A(0)) high.add(right.high_weight, column);
                }
            }
        }
        while (exists && j < shape.size) advance();
    }
}

// How the channels of a call are divided: among `lanes` threads of a block, and among `chunks` blocks.
struct Split {
    unsigned lanes = 4;
    int64_t chunks;

    Split(int64_t vectors, int count) {
        while (lanes < kWarp && lanes < vectors) lanes *= 2;
        chunks = (vectors + lanes * count - 1) / (lanes * count);
    }
};

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(RoiShape, unsigned, Parameters...), const RoiShape& shape, const Split& split, int64_t blocks,
           unsigned rows, void* stream, Arguments... arguments) {
    blocks *= split.chunks;
    if (blocks == 0) return cudaSuccess;
    if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(split.lanes, rows);
    config.stream = static_cast<cudaStream_t>(stream);
    return cudaLaunchKernelEx(&config, kernel, shape, static_cast<unsigned>(split.chunks), arguments...);
}

// With a block for every tile of the maps.
template <typename C, typename Kernel, typename... Arguments>
int launch_on_tiles(Kernel kernel, const RoiShape& shape, void* stream, Arguments... arguments) {
    const Split split(shape.channels / C::width, C::count);
    const int64_t blocks = shape.images * tiles(shape.height) * tiles(shape.width);
    return launch(kernel, shape, split, blocks, kTileThreads / split.lanes, stream, arguments...);
}

// With a block for every region, as high as its patch, in whole warps.
template <typename C, typename Kernel, typename... Arguments>
int launch_on_regions(Kernel kernel, const RoiShape& shape, void* stream, Arguments... arguments) {
    const Split split(shape.channels / C::width, C::count);
    const unsigned whole = kWarp / split.lanes, most = kPatchThreads / split.lanes, size = shape.size;
    const unsigned rounds = (size + most - 1) / most, rows = (size + rounds - 1) / rounds;
    return launch(kernel, shape, split, shape.regions, (rows + whole - 1) / whole * whole, stream, arguments...);
}

// Calls `run` with the Channels of the widest access that the number of channels and all addresses allow.
template <typename T, typename Run>
int with_channels(int64_t channels, std::initializer_list<const void*> pointers, Run run) {
    constexpr int width = 16 / sizeof(T);
    uintptr_t bits = channels * sizeof(T);
    for (const void* pointer : pointers) bits |= reinterpret_cast<uintptr_t>(pointer);
    if (bits % 16) return run(Channels<T, 1, 1>());
    if (channels % (2 * kWarp * width)) return run(Channels<T, width, 1>());
    return run(Channels<T, width, 2>());
}

template <typename Run>
int with_channels(Dtype dtype, int64_t channels, std::initializer_list<const void*> pointers, Run run) {
    switch (dtype) {
        case Dtype::f64: return with_channels<double>(channels, pointers, run);
        case Dtype::f32: return with_channels<float>(channels, pointers, run);
        case Dtype::bf16: return with_channels<__nv_bfloat16>(channels, pointers, run);
        case Dtype::f16: return with_channels<__half>(channels, pointers, run);
    }
    return cudaErrorInvalidValue;
}

}  // namespace

int crop_resize(Dtype dtype, RoiShape shape, const void* features, const float* boxes, const int64_t* ptr, bool clamp,
                void* out, void* stream) {
    return with_channels(dtype, shape.channels, {features, out}, [&](auto channels) {
        using C = decltype(channels);
        return launch_on_regions<C>(crop_resize_forward_kernel<C>, shape, stream, static_cast<const char*>(features),
                                    boxes, ptr, clamp, static_cast<char*>(out));
    });
}

int crop_resize_backward(Dtype dtype, RoiShape shape, const void* grad, const float* boxes, const int64_t* ptr,
                         bool clamp, void* out, void* stream) {
    return with_channels(dtype, shape.channels, {grad, out}, [&](auto channels) {
        using C = decltype(channels);
        return launch_on_tiles<C>(crop_resize_backward_kernel<C>, shape, stream, static_cast<const char*>(grad), boxes,
                                  ptr, clamp, static_cast<char*>(out));
    });
}

int paste_mean(Dtype dtype, RoiShape shape, const void* memory, const void* patches, const float* boxes,
               const int64_t* ptr, void* out, void* stream) {
    return with_channels(dtype, shape.channels, {memory, patches, out}, [&](auto channels) {
        using C = decltype(channels);
        return launch_on_tiles<C>(paste_mean_forward_kernel<C>, shape, stream, static_cast<const char*>(memory),
                                  static_cast<const char*>(patches), boxes, ptr, static_cast<char*>(out));
    });
}

int paste_mean_backward(Dtype dtype, RoiShape shape, const void* grad, const float* boxes, const int64_t* ptr,
                        void* out, void* stream) {
    return with_channels(dtype, shape.channels, {grad, out}, [&](auto channels) {
        using C = decltype(channels);
        return launch_on_regions<C>(paste_mean_backward_kernel<C>, shape, stream, static_cast<const char*>(grad), boxes,
                                    ptr, static_cast<char*>(out));
    });
}

}  // namespace irnet::cuda
