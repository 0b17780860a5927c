// The kernels of crop_resize for GPUs, and their launches; no header of PyTorch, no allocation, no waiting.

#include "roi_tiles.cuh"

namespace irnet::cuda {

namespace {

constexpr int kSamples = 32;        // columns of a patch whose positions a block keeps
constexpr int kPiece = 8;           // samples along each side of a piece of a patch
constexpr int kLines = 2 * kPiece;  // of a piece: its rows, then its columns
// Elements of more than 16 bits are summed in groups of so many terms, and then the sums of the groups: the error is
// smaller than that of one long sum.
constexpr int kFlush = 8;

// crop_resize. A block has one region, each y of it rows of the patch.
template <typename C>
__global__ void __launch_bounds__(kPatchThreads, 4)
    crop_resize_forward_kernel(RoiShape shape, unsigned chunks, const char* __restrict__ features,
                               const float* __restrict__ boxes, const int64_t* __restrict__ ptr, bool clamp,
                               char* __restrict__ out) {
    using A = typename C::AccType;
    __shared__ AxisTap<A> columns[kSamples];
    const ThreadSlot slot = thread_slot<C>(shape.channels, chunks);
    const int thread = thread_index(), threads = blockDim.x * blockDim.y;
    const int64_t region = slot.index, stride = shape.channels * C::bytes, row_stride = shape.width * stride;
    const int64_t owner = find_image(ptr, shape.images, region);
    const float* box = boxes + 4 * region;
    for (int first = 0; first < shape.size; first += kSamples) {
        const int samples = min(kSamples, shape.size - first);
        __syncthreads();  // those before have been read
        for (int j = thread; j < samples; j += threads) {
            const Tap<A> tap = crop_tap<A>(box[0], box[2], first + j, shape.size, shape.width, clamp);
            columns[j] = {tap.low * stride, tap.low_weight, tap.high_weight};
        }
        __syncthreads();
        for (int i = threadIdx.y; i < shape.size && slot.exists; i += blockDim.y) {
            Tap<A> tap = crop_tap<A>(box[1], box[3], i, shape.size, shape.height, clamp);
            if (owner < 0) tap = {-1, -1, A(0), A(0)};
            const AxisTap<A> y = {(owner * shape.height + tap.low) * row_stride, tap.low_weight, tap.high_weight};
            char* to = out + ((region * shape.size + i) * shape.size + first) * stride + slot.offset;
#pragma unroll 1
            for (int j = 0; j < samples; ++j, to += stride) {
                Sum<C> sum;
                const AxisTap<A> x = columns[j];
                const char* low = features + slot.offset + y.offset + x.offset;
                add_corners(sum, Corners<A>(y, x), low, row_stride, stride);
                sum.store(to);
            }
        }
    }
}

// A row or column of samples of a piece: how far it is from the array's first one, and where it lies on the map.
template <typename A>
struct alignas(16) Line {
    int64_t offset;
    int low;
    A high_weight;

    __device__ __forceinline__ bool touches(int cell) const {
        return cell == low || (cell == low + 1 && high_weight != A(0));
    }
    __device__ __forceinline__ A weight(int touched) const { return touched == low ? A(1) - high_weight : high_weight; }
};

// Pieces of patches, of at most kPiece x kPiece samples.
template <typename A>
struct Pieces {
    Line<A> lines[kList][kLines + 1];  // one more: a warp that reads one line of every piece meets all memory banks
    uchar2 ranges[kTileLines][kList];  // which lines touch a line of the tile: from the first to before the last
    unsigned touching[kTileLines];     // which pieces have such lines, as bits
};

// Along each side of a patch.
__device__ __forceinline__ int pieces_along(int size) { return (size - 1) / kPiece + 1; }

// What a sample adds to a cell.
template <typename A>
struct alignas(16) SampleTerm {
    int64_t offset;
    A weight;
};

// What crop_resize's gradient sums: the pieces of all patches (see write_tile).
template <typename C>
struct SamplesOfTile {
    using A = typename C::AccType;
    using Term = SampleTerm<A>;

    struct Sums {
        Sum<C> sum, total;
        int terms = 0;  // in `sum`
    };
    struct Piece {
        int64_t region;
        int row, column;
    };

    const RoiShape& shape;
    const Tile& tile;
    Pieces<A>& pieces;
    const char* grad;
    const float* boxes;
    bool clamp;
    char* out;
    int64_t offset;  // of the thread's channels

    __device__ __forceinline__ Piece piece(int64_t candidate) const {
        const int side = pieces_along(shape.size);
        if (side == 1) return {tile.regions.begin + candidate, 0, 0};
        const int64_t rows = candidate / side;
        return {tile.regions.begin + rows / side, static_cast<int>(rows % side) * kPiece,
                static_cast<int>(candidate % side) * kPiece};
    }

    // Whether samples of a piece may touch cells: along an axis they lie between the first and the last one.
    __device__ __forceinline__ bool reaches_cells(float low, float high, int first, int axis, Range cells) const {
        const A spacing = (A(high) - A(low)) / A(shape.size > 1 ? shape.size - 1 : 1);
        const int last = shape.size > 1 ? min(first + kPiece, shape.size) - 1 : 1;
        A from = A(low) + A(first) * spacing, to = A(low) + A(last) * spacing;
        if (clamp) {
            from = clip(from, A(0), A(axis - 1));
            to = clip(to, A(0), A(axis - 1));
        }
        return reaches(from, to, A(0), cells);
    }

    __device__ __forceinline__ void list(List& list, int64_t next) const {
        const int thread = thread_index(), warp = thread / kWarp, lane = thread % kWarp;
        list_candidates(list, next, tile.candidates, [&](int64_t candidate) {
            const Piece p = piece(candidate);
            const float* box = boxes + 4 * p.region;
            return reaches_cells(box[1], box[3], p.row, shape.height, tile.y) &&
                   reaches_cells(box[0], box[2], p.column, shape.width, tile.x);
        });
        const int64_t stride = shape.channels * C::bytes;
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
        for (int line = warp; line < kTileLines; line += kTileWarps) {
            const bool is_row = line < kTile;
            const int cell = (is_row ? tile.y.begin : tile.x.begin) + line % kTile;
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
    }

    __device__ __forceinline__ unsigned items(Cell cell) const {
        return pieces.touching[cell.row] & pieces.touching[kTile + cell.column];
    }

    __device__ __forceinline__ int count(int item, Cell cell) const {
        const uchar2 rows = pieces.ranges[cell.row][item], columns = pieces.ranges[kTile + cell.column][item];
        return (rows.y - rows.x) * (columns.y - columns.x);
    }

    template <typename Emit>
    __device__ __forceinline__ void make(int item, Cell cell, Emit emit) const {
        const uchar2 rows = pieces.ranges[cell.row][item], columns = pieces.ranges[kTile + cell.column][item];
#pragma unroll 1
        for (int i = rows.x; i < rows.y; ++i) {
            const Line<A> down = pieces.lines[item][i];
            const A weight = down.weight(tile.y.begin + cell.row);
#pragma unroll 1
            for (int j = columns.x; j < columns.y; ++j) {
                const Line<A> right = pieces.lines[item][kPiece + j];
                emit({down.offset + right.offset, weight * right.weight(tile.x.begin + cell.column)});
            }
        }
    }

    __device__ __forceinline__ void add(Sums& sums, const Term* terms, int count) const {
        const auto add = [&](const Term& term, const Sum<C>& sample) { sums.sum.add(term.weight, sample); };
        if (C::bytes == 2) {
            add_terms<C>(grad + offset, terms, count, add);
            return;
        }
        while (count > 0) {
            const int together = min(kFlush - sums.terms, count);
            add_terms<C>(grad + offset, terms, together, add);
            terms += together;
            count -= together;
            sums.terms += together;
            if (sums.terms == kFlush) {
                sums.total.add(1, sums.sum);
                sums.sum = {};
                sums.terms = 0;
            }
        }
    }

    __device__ __forceinline__ void finish(Sums& sums, Cell cell) const {
        if (C::bytes > 2) sums.sum.add(1, sums.total);
        const int64_t number = tile.first + cell.row * shape.width + cell.column;
        sums.sum.store(out + offset + number * shape.channels * C::bytes);
    }
};

// The gradient of crop_resize.
template <typename C>
__global__ void __launch_bounds__(kTileThreads, (C::width > 1 && sizeof(typename C::AccType) == 4) ? 4 : 2)
    crop_resize_backward_kernel(RoiShape shape, unsigned chunks, const char* __restrict__ grad,
                                const float* __restrict__ boxes, const int64_t* __restrict__ ptr, bool clamp,
                                char* __restrict__ out) {
    using Source = SamplesOfTile<C>;
    __shared__ Tile to;
    __shared__ List list;
    __shared__ Pieces<typename C::AccType> pieces;
    __shared__ Terms<typename Source::Term> terms;
    const ThreadSlot slot = thread_slot<C>(shape.channels, chunks);
    const int64_t side = pieces_along(shape.size);
    if (thread_index() == 0) to = tile(shape, slot.index, ptr, side * side);
    __syncthreads();
    const Source source = {shape, to, pieces, grad, boxes, clamp, out, slot.offset};
    write_tile(source, list, terms, to, slot.exists);
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

}  // namespace irnet::cuda
