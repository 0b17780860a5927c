// The kernels of paste_mean for GPUs, and their launches; no header of PyTorch, no allocation, no waiting.

#include "roi_tiles.cuh"

namespace irnet::cuda {

namespace {

constexpr int kRows = 128, kColumns = 64, kCells = 512;  // of a map, whose positions and weights a block keeps
constexpr int kShares = 16;                              // cells along each side of a tile whose shares a block makes

// Regions, and where the rows and columns of a tile lie on their patches.
template <typename A>
struct Regions {
    AxisTap<A> cells[kTileLines][kList];
    unsigned covering[kTileLines];  // which regions cover a row or column, as bits
};

// What a region adds to a cell that it covers: four samples, from the one at `offset` on, by their rows and columns.
template <typename A>
struct alignas(16) RegionTerm {
    int64_t offset;
    Corners<A> weights;
};

// sum / count to the bit, but where it is subnormal, at a third of its cost: `inverse` is 1 / count, and the rest
// corrects the last bit.
template <typename A>
__device__ __forceinline__ A divide(A sum, A count, A inverse) {
    const A quotient = sum * inverse, rest = fma(-quotient, count, sum);
    return rest == rest ? fma(rest, inverse, quotient) : quotient;  // an infinity has no rest
}

// What paste_mean sums: the regions that cover a cell (see write_tile).
template <typename C>
struct RegionsOfTile {
    using A = typename C::AccType;
    using Term = RegionTerm<A>;

    struct Sums {
        Sum<C> sum;
        unsigned count = 0;  // of regions
    };

    const RoiShape& shape;
    const Tile& tile;
    Regions<A>& regions;
    const char *memory, *patches;
    const float* boxes;
    char* out;
    int64_t offset;  // of the thread's channels

    // Whether a region may cover cells: kTolerance and roundings move its edges by less than this slack.
    __device__ __forceinline__ bool reaches_cells(A low, A high, Range cells) const {
        return reaches(low, high, A(2 * kTolerance) * (fabs(low) + fabs(high)), cells);
    }

    __device__ __forceinline__ void list(List& list, int64_t next) const {
        const int thread = thread_index(), warp = thread / kWarp, lane = thread % kWarp;
        list_candidates(list, next, tile.candidates, [&](int64_t candidate) {
            const float* box = boxes + 4 * (tile.regions.begin + candidate);
            return reaches_cells(box[1], box[3], tile.y) && reaches_cells(box[0], box[2], tile.x);
        });
        const int64_t stride = shape.channels * C::bytes;
#pragma unroll 1
        for (int line = warp; line < kTileLines; line += kTileWarps) {
            const bool is_row = line < kTile;
            bool covers = false;
            if (lane < list.count) {
                const int64_t region = tile.regions.begin + list.items[lane];
                const float* box = boxes + 4 * region;
                const int cell = (is_row ? tile.y.begin : tile.x.begin) + line % kTile;
                const Tap<A> tap = paste_tap<A>(box[is_row], box[is_row + 2], cell, shape.size);
                const int64_t before = is_row ? (region * shape.size + tap.low) * shape.size : tap.low;
                regions.cells[line][lane] = {before * stride, tap.low_weight, tap.high_weight};
                covers = tap.low >= 0;
            }
            const unsigned covering = __ballot_sync(~0u, covers);
            if (lane == 0) regions.covering[line] = covering;
        }
        __syncthreads();
    }

    __device__ __forceinline__ unsigned items(Cell cell) const {
        return regions.covering[cell.row] & regions.covering[kTile + cell.column];
    }

    __device__ __forceinline__ int count(int, Cell) const { return 1; }

    template <typename Emit>
    __device__ __forceinline__ void make(int item, Cell cell, Emit emit) const {
        const AxisTap<A> y = regions.cells[cell.row][item], x = regions.cells[kTile + cell.column][item];
        emit({y.offset + x.offset, Corners<A>(y, x)});
    }

    __device__ __forceinline__ void add(Sums& sums, const Term* terms, int count) const {
        const int64_t stride = shape.channels * C::bytes, row_stride = shape.size * stride;
        sums.count += count;
#pragma unroll 1
        for (int t = 0; t < count; ++t) {
            const Term term = terms[t];
            add_corners(sums.sum, term.weights, patches + offset + term.offset, row_stride, stride);
        }
    }

    __device__ __forceinline__ void finish(Sums& sums, Cell cell) const {
        const int64_t number = tile.first + cell.row * shape.width + cell.column;
        const int64_t at = number * shape.channels * C::bytes + offset;
        const C before = C::load(memory + at);
        if (sums.count == 0) {
            before.store(out + at);  // to the bit
            return;
        }
        const Sum<C> base(before);
        const A divisor = A(sums.count), inverse = A(1) / divisor;
#pragma unroll
        for (int i = 0; i < C::size; ++i) {
            sums.sum.values[i] = base.values[i] + divide(sums.sum.values[i], divisor, inverse);
        }
        sums.sum.store(out + at);
    }
};

// paste_mean.
template <typename C>
__global__ void __launch_bounds__(kTileThreads, sizeof(typename C::AccType) == 4 ? 4 : 3)
    paste_mean_forward_kernel(RoiShape shape, unsigned chunks, const char* __restrict__ memory,
                              const char* __restrict__ patches, const float* __restrict__ boxes,
                              const int64_t* __restrict__ ptr, char* __restrict__ out) {
    using Source = RegionsOfTile<C>;
    __shared__ Tile to;
    __shared__ List list;
    __shared__ Regions<typename C::AccType> regions;
    __shared__ Terms<typename Source::Term> terms;
    const ThreadSlot slot = thread_slot<C>(shape.channels, chunks);
    if (thread_index() == 0) to = tile(shape, slot.index, ptr, 1);
    __syncthreads();
    const Source source = {shape, to, regions, memory, patches, boxes, out, slot.offset};
    write_tile(source, list, terms, to, slot.exists);
}

// For paste_mean's gradient: 1 / the number of regions that cover a cell, for every cell that one covers.
template <typename A>
__global__ void __launch_bounds__(kShares* kShares, 4)
    paste_mean_shares_kernel(RoiShape shape, unsigned, const float* __restrict__ boxes, const int64_t* __restrict__ ptr,
                             A* __restrict__ shares) {
    __shared__ unsigned covering[2][2 * kShares];  // which of 32 regions cover a row and then a column, as bits
    const int thread = thread_index(), warp = thread / kWarp, lane = thread % kWarp;
    const unsigned across = tiles(shape.width, kShares), down = tiles(shape.height, kShares);
    const int64_t image = blockIdx.x / across / down;
    const int left = blockIdx.x % across * kShares, top = blockIdx.x / across % down * kShares;
    const int row = thread / kShares, column = thread % kShares;
    const Owned own = owned(ptr, image, shape.regions);
    int64_t count = 0;
    int turn = 0;  // while some threads read, others may write for the next regions
    for (int64_t first = own.begin; first < own.end; first += kWarp, turn = 1 - turn) {
        const float* box = boxes + 4 * min(first + lane, own.end - 1);
        for (int line = warp; line < 2 * kShares; line += kShares * kShares / kWarp) {
            const bool is_row = line < kShares;
            const int cell = (is_row ? top : left) + line % kShares;
            const Tap<A> tap = paste_tap<A>(box[is_row], box[is_row + 2], cell, shape.size);
            const unsigned covers = __ballot_sync(~0u, first + lane < own.end && tap.low >= 0);
            if (lane == 0) covering[turn][line] = covers;
        }
        __syncthreads();
        count += __popc(covering[turn][row] & covering[turn][kShares + column]);
    }
    const int64_t y = top + row, x = left + column;
    if (y < shape.height && x < shape.width) shares[(image * shape.height + y) * shape.width + x] = A(1) / A(count);
}

// A column of cells: where it lies on the patch, and of the columns with the same low neighbour the first one with a
// high neighbour, and the one after the last.
template <typename A>
struct Column {
    Tap<A> tap;
    int with_high, end;
};

// The weights with which a cell is added to samples j (low) and j + 1 (high) of a row of the patch. For elements of
// more than 16 bits low is the weight along y alone and high is not used: the weights along x multiply the sum of a
// column.
template <typename A>
struct alignas(16) CellTerm {
    int64_t offset;
    A low, high;
};

// A part of the cells that a region covers, its rows and columns in the order of their positions on the patch.
template <typename A>
struct Part {
    Tap<A> rows[kRows];  // where they lie on the patch
    Column<A> columns[kColumns];
    CellTerm<A> terms[2 * kCells];  // of every row of the patch that the block works on, column by column
};

// The gradient of paste_mean to the patches. A block has one region, each y of it rows of the patch.
template <typename C>
__global__ void __launch_bounds__(kPatchThreads, sizeof(typename C::AccType) == 8 ? 2
                                                 : C::count == 2                  ? 3
                                                                                  : 4)
    paste_mean_backward_kernel(RoiShape shape, unsigned chunks, const char* __restrict__ grad,
                               const float* __restrict__ boxes, const int64_t* __restrict__ ptr,
                               const typename C::AccType* __restrict__ shares, char* __restrict__ out) {
    using A = typename C::AccType;
    using Term = CellTerm<A>;
    __shared__ int64_t owner;
    __shared__ Range covered[2];
    __shared__ Part<A> part;
    const ThreadSlot slot = thread_slot<C>(shape.channels, chunks);
    const int thread = thread_index(), threads = blockDim.x * blockDim.y;
    const int64_t region = slot.index, stride = shape.channels * C::bytes;
    const float* box = boxes + 4 * region;
    const int direction_y = box[3] < box[1] ? -1 : 1, direction_x = box[2] < box[0] ? -1 : 1;  // from cell to cell
    if (thread < 2) {
        const bool is_row = thread == 0;
        const int cells = is_row ? shape.height : shape.width;
        covered[thread] = paste_range<A>(box[is_row], box[is_row + 2], cells, shape.size);
    }
    if (thread / kWarp == threads / kWarp - 1) {
        const int64_t image = find_image(ptr, shape.images, region);
        if (thread == threads - 1) owner = image;
    }
    __syncthreads();

    for (int first = 0; first < shape.size; first += blockDim.y) {
        const int i = first + threadIdx.y;
        const bool exists = slot.exists && i < shape.size;
        char* to = out + (region * shape.size + i) * shape.size * stride + slot.offset;
        Sum<C> low, high;  // of samples j and j + 1
        int j = 0;
        const auto advance = [&] {
            low.store(to);
            low = high;
            high = {};
            to += stride;
            ++j;
        };
        const int height = owner < 0 ? 0 : covered[0].end - covered[0].begin;
        const int width = height == 0 ? 0 : covered[1].end - covered[1].begin;
        // In parts, of all rows and as many columns as fit or, where there are too many rows, some rows of one column.
        for (int left = 0, top = 0; left < width;) {
            const int rows = min(kRows, height - top);
            const int columns = height > kRows ? 1 : min(min(kColumns, kCells / height), width - left);
            const int y = direction_y < 0 ? covered[0].end - 1 - top : covered[0].begin + top;
            const int x = direction_x < 0 ? covered[1].end - 1 - left : covered[1].begin + left;
            __syncthreads();  // the part before has been read
#pragma unroll 1
            for (int k = thread; k < rows + columns; k += threads) {
                const bool is_row = k < rows;
                const int cell = is_row ? y + direction_y * k : x + direction_x * (k - rows);
                (is_row ? part.rows[k] : part.columns[k - rows].tap) =
                    paste_tap<A>(box[is_row], box[is_row + 2], cell, shape.size);
            }
            __syncthreads();
#pragma unroll 1
            for (int k = thread; k < columns; k += threads) {
                int with_high = k, end = k;
                while (end < columns && part.columns[end].tap.low == part.columns[k].tap.low) ++end;
                while (with_high < end && part.columns[with_high].tap.high_weight == A(0)) ++with_high;
                part.columns[k].with_high = with_high;
                part.columns[k].end = end;
            }
            // The part's rows that touch row i of the patch, from `begin` on as its high neighbours, then as its low
            // ones. The terms of row i have their place after those of the rows before.
            int begin = 0;
            while (begin < rows && part.rows[begin].weight(i) == A(0)) ++begin;
            int low_begin = begin;
            while (low_begin < rows && part.rows[low_begin].low < i) ++low_begin;
            int end = low_begin;
            while (end < rows && part.rows[end].low == i) ++end;
            Term* terms = part.terms + (begin + low_begin) * columns;
            const int count = end - begin;
#pragma unroll 1
            for (int k = threadIdx.x; k < count * columns && i < shape.size; k += blockDim.x) {
                const int u = k / count, v = begin + k % count;
                const int64_t cell = (owner * shape.height + y + direction_y * v) * shape.width + x + direction_x * u;
                const Tap<A> down = part.rows[v], right = part.columns[u].tap;
                const A weight = (v < low_begin ? down.high_weight : down.low_weight) * shares[cell];
                terms[k] = {cell * stride, weight, A(0)};
                if (C::bytes == 2) terms[k] = {cell * stride, weight * right.low_weight, weight * right.high_weight};
            }
            __syncthreads();
#pragma unroll 1
            for (int u = 0; u < columns && exists;) {
                const Column<A> column = part.columns[u];
#pragma unroll 1
                while (j < column.tap.low) advance();
                const char* from = grad + slot.offset;
                if constexpr (C::bytes > 2) {  // each column by itself rounds less
                    Sum<C> sum;
                    add_terms<C>(from, terms, count,
                                 [&](const Term& term, const Sum<C>& cell) { sum.add(term.low, cell); });
                    low.add(column.tap.low_weight, sum);
                    if (column.tap.high_weight != A(0)) high.add(column.tap.high_weight, sum);
                    terms += count;
                    ++u;
                } else if (u < column.with_high) {  // what has no weight is not added: it may be no number
                    const int cells = (column.with_high - u) * count;
                    add_terms<C>(from, terms, cells,
                                 [&](const Term& term, const Sum<C>& cell) { low.add(term.low, cell); });
                    terms += cells;
                    u = column.with_high;
                } else {
                    const int cells = (column.end - u) * count;
                    add_terms<C>(from, terms, cells, [&](const Term& term, const Sum<C>& cell) {
                        low.add(term.low, cell);
                        high.add(term.high, cell);
                    });
                    terms += cells;
                    u = column.end;
                }
            }
            top += rows;
            if (top < height) continue;
            top = 0;
            left += columns;
        }
#pragma unroll 1
        while (exists && j < shape.size) advance();
    }
}

}  // namespace

int paste_mean(Dtype dtype, RoiShape shape, const void* memory, const void* patches, const float* boxes,
               const int64_t* ptr, void* out, void* stream) {
    return with_channels(dtype, shape.channels, {memory, patches, out}, [&](auto channels) {
        using C = decltype(channels);
        return launch_on_tiles<C>(paste_mean_forward_kernel<C>, shape, stream, static_cast<const char*>(memory),
                                  static_cast<const char*>(patches), boxes, ptr, static_cast<char*>(out));
    });
}

int paste_mean_backward(Dtype dtype, RoiShape shape, const void* grad, const float* boxes, const int64_t* ptr,
                        void* shares, void* out, void* stream) {
    return with_channels(dtype, shape.channels, {grad, out}, [&](auto channels) {
        using C = decltype(channels);
        using A = typename C::AccType;
        if (shape.regions == 0 || shape.channels == 0) return static_cast<int>(cudaSuccess);
        const int64_t blocks = shape.images * tiles(shape.height, kShares) * tiles(shape.width, kShares);
        const int error = launch(paste_mean_shares_kernel<A>, shape, Split(1, 1, 4), blocks, kShares * kShares / 4,
                                 stream, boxes, ptr, static_cast<A*>(shares));
        if (error != cudaSuccess) return error;
        return launch_on_regions<C>(paste_mean_backward_kernel<C>, shape, stream, static_cast<const char*>(grad), boxes,
                                    ptr, static_cast<const A*>(shares), static_cast<char*>(out));
    });
}

}  // namespace irnet::cuda
