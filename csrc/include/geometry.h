// Where the samples of a box and the cells of a map lie, for host and device alike: the arithmetic of
// kernels/irnet_kernels/roi/reference.py in the same order, so that all implementations agree to the bit about which
// samples and cells there are. Compile with contraction off (-ffp-contract=off, -fmad=false): a fused multiply-add
// rounds once where the reference rounds twice. No memory is touched here.
#pragma once

#ifdef __CUDACC__
#define IRNET_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define IRNET_HOST_DEVICE inline
#endif

namespace irnet {

constexpr double kTolerance = 1e-4;  // cells by which a position may lie outside and still count as on the border

// A position on an axis: low_weight of cell `low` and high_weight of cell `high`, together 1. Outside the axis both
// cells are -1 and the weights 0. Where the position is a cell `high` is that cell, too, so what has no weight is never
// read: a NaN there does no harm, and both cells exist.
template <typename T>
struct Tap {
    int low, high;
    T low_weight, high_weight;

    // The weight of a cell; 0 for those that the position does not touch.
    IRNET_HOST_DEVICE T weight(int cell) const { return cell == low ? low_weight : cell == high ? high_weight : T(0); }
};

// A half-open range of cells.
struct Range {
    int begin, end;

    IRNET_HOST_DEVICE bool contains(int cell) const { return begin <= cell && cell < end; }
    IRNET_HOST_DEVICE bool meets(Range other) const { return begin < other.end && other.begin < end; }
};

// The cells of a map that a region covers.
struct Rectangle {
    Range y, x;
};

template <typename T>
IRNET_HOST_DEVICE T clip(T x, T low, T high) {
    return x < low ? low : x > high ? high : x;
}

// The position on an axis of `cells`; a NaN is outside.
template <typename T>
IRNET_HOST_DEVICE Tap<T> tap(T position, int cells) {
    if (!(position >= T(-kTolerance) && position <= T(cells - 1 + kTolerance))) return {-1, -1, T(0), T(0)};
    position = clip(position, T(0), T(cells - 1));
    const int low = static_cast<int>(position);
    const T high_weight = position - T(low);
    return {low, high_weight > T(0) ? low + 1 : low, T(1) - high_weight, high_weight};
}

// Sample `index` of `size` between the edges `low` and `high` of a box, on an axis of `cells`; size 1 samples the
// centre.
template <typename T>
IRNET_HOST_DEVICE Tap<T> crop_tap(float low, float high, int index, int size, int cells, bool clamp) {
    const T spacing = (T(high) - T(low)) / T(size > 1 ? size - 1 : 1);
    const T sample = size > 1 ? T(index) : T(0.5);
    T position = T(low) + sample * spacing;
    // A position that is infinite stays where it is: outside.
    if (clamp && position - position == T(0)) position = clip(position, T(0), T(cells - 1));
    return tap(position, cells);
}

// Where `cell` lies on an axis of a patch of `size` whose box has the edges `low` and `high`. A box of zero or infinite
// extent covers nothing.
template <typename T>
IRNET_HOST_DEVICE Tap<T> paste_tap(float low, float high, int cell, int size) {
    const T extent = T(high) - T(low);
    if (!(extent - extent == T(0)) || extent == T(0)) return {-1, -1, T(0), T(0)};
    return tap((T(cell) - T(low)) / extent * T(size - 1), size);
}

// The cells for which paste_tap is not outside: as positions are monotonous in the cell, one range.
template <typename T>
IRNET_HOST_DEVICE Range paste_range(float low, float high, int cells, int size) {
    const T extent = low < high ? T(high) - T(low) : T(low) - T(high);
    if (!(extent - extent == T(0))) return {0, 0};
    // A little wider than the tolerance and all roundings allow; then to the cell.
    constexpr T roundings = sizeof(T) == sizeof(double) ? T(0x1p-49) : T(0x1p-20);  // 8 epsilon
    const T margin = T(1) + extent * (T(kTolerance) / T(size - 1) + roundings);
    const T first = (low < high ? T(low) : T(high)) - margin, last = (low < high ? T(high) : T(low)) + margin;
    Range range = {static_cast<int>(clip(first, T(0), T(cells))),
                   static_cast<int>(clip(last, T(-1), T(cells - 1))) + 1};
    while (range.begin < range.end && paste_tap<T>(low, high, range.begin, size).low < 0) ++range.begin;
    while (range.begin < range.end && paste_tap<T>(low, high, range.end - 1, size).low < 0) --range.end;
    return range;
}

// The cells that a patch of `size` covers on a map of `height` x `width`; `box` is (x1, y1, x2, y2).
template <typename T>
IRNET_HOST_DEVICE Rectangle paste_rectangle(const float* box, int height, int width, int size) {
    return {paste_range<T>(box[1], box[3], height, size), paste_range<T>(box[0], box[2], width, size)};
}

}  // namespace irnet
