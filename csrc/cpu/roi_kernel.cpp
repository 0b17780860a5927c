// crop_resize and paste_mean on a CPU: which rows of channels enter each row of a result, and with which weights. The
// sums themselves are made by weighted_sum.

#include <algorithm>
#include <cstring>

#include "geometry.h"
#include "roi.h"
#include "vectors.h"
#include "weighted_sum.h"

namespace irnet::cpu {

namespace {

constexpr int kTerms = 64;            // summed at once: sums of sums of so many round less than one long sum
constexpr int64_t kChannels = 1024;   // the same; partial sums of so many lie on the stack
constexpr int64_t kCached = 1 << 21;  // bytes: larger results are streamed, if any: they would not stay in a cache
constexpr int kBlock = 64;            // cells along each side of what paste_mean_backward looks at

// Rows of channels of a result, one after the other: sums of rows of an input, both [..., channels] and packed.
template <typename A>
class Sum {
  public:
    // For the channels from `first` on, up to kChannels of them, of a result of so many rows.
    Sum(const Roi& roi, const void* input, void* out, int64_t rows, int64_t first)
        : sum_(weighted_sum<A>(roi.dtype, roi.capability)),
          width_(bytes(roi.dtype)),
          stride_(roi.shape.channels * width_),
          channels_(std::min(kChannels, roi.shape.channels - first)),
          offset_(first * width_),
          input_(static_cast<const char*>(input) + offset_),
          out_(static_cast<char*>(out) + offset_),
          streamed_(roi.streams && rows * stride_ > kCached && (stride_ | reinterpret_cast<intptr_t>(out)) % 64 == 0) {}
    ~Sum() { end_stream(); }
    Sum(const Sum&) = delete;

    void add(int64_t row, A weight) {
        if (weight == A(0)) return;
        if (count_ == kTerms) flush({nullptr, nullptr, A(1), partial_, continued_, false});
        terms_[count_++] = {input_ + row * stride_, weight};
    }

    // The neighbours of a position in an array of so many columns that starts at row `origin` of the input.
    void add(int64_t origin, int columns, const Tap<A>& y, const Tap<A>& x) {
        if (y.low < 0 || x.low < 0) return;
        const int64_t low = origin + int64_t{y.low} * columns, high = origin + int64_t{y.high} * columns;
        add(low + x.low, y.low_weight * x.low_weight);
        add(low + x.high, y.low_weight * x.high_weight);
        add(high + x.low, y.high_weight * x.low_weight);
        add(high + x.high, y.high_weight * x.high_weight);
    }

    // Write a row of the result and start anew: the sum or, where there is a base, the base's row plus sum / divisor.
    void finish(int64_t row, const void* base = nullptr, A divisor = A(1)) {
        flush({out_ + row * stride_, base ? from(base, row) : nullptr, divisor, partial_, continued_, streamed_});
        continued_ = false;
    }

    // Write a row of the base, to the bit.
    void copy(int64_t row, const void* base) const {
        std::memcpy(out_ + row * stride_, from(base, row), channels_ * width_);
    }

  private:
    const char* from(const void* rows, int64_t row) const {
        return static_cast<const char*>(rows) + offset_ + row * stride_;
    }

    void flush(const Output<A>& output) {
        sum_(terms_, count_, channels_, output);
        count_ = 0;
        continued_ = true;
    }

    WeightedSum<A> sum_;
    int64_t width_, stride_, channels_, offset_;  // bytes of a number and a row; channels, bytes before the first
    const char* input_;
    char* out_;
    const bool streamed_;
    int count_ = 0;
    bool continued_ = false;
    Term<A> terms_[kTerms];
    A partial_[kChannels];
};

// A region that meets a map row: the rows of its patch that touch it (crop), or where it lies in the patch (paste).
template <typename A>
struct Active {
    int64_t region;
    Range rows;
    Tap<A> position;
};

// What the threads share, and the list that each has for itself.
template <typename A>
struct Scratch {
    Rectangle* rectangles;  // [regions]: the cells that a region's samples touch, or that its patch covers
    Active<A>* active;      // [threads, regions]
    Tap<A>* taps;           // [regions, 2, size], crop only: where the samples lie, down and across

    explicit Scratch(const Roi& roi)
        : rectangles(static_cast<Rectangle*>(roi.scratch)),
          active(reinterpret_cast<Active<A>*>(rectangles + roi.shape.regions)),
          taps(reinterpret_cast<Tap<A>*>(active + roi.threads * roi.shape.regions)) {}

    static int64_t bytes(const Roi& roi, int64_t samples) {
        return roi.shape.regions * (sizeof(Rectangle) + roi.threads * sizeof(Active<A>) + samples * sizeof(Tap<A>));
    }
};

// Calls work(A{}, channel) for the type in which sums are made and every block of channels.
template <typename Work>
void over_channels(const Roi& roi, Work work) {
    for (int64_t channel = 0; channel < roi.shape.channels; channel += kChannels) {
        if (roi.dtype == Dtype::f64) {
            work(double{}, channel);
        } else {
            work(float{}, channel);
        }
    }
}

// The cells that positions on an axis touch, from the first to the last.
template <typename A>
Range touched(const Tap<A>* taps, int count) {
    Range cells = {0, 0};
    for (const Tap<A>* tap = taps; tap < taps + count; ++tap) {
        if (tap->low < 0) continue;
        const Range own = {tap->low, tap->high + 1};
        cells = cells.begin == cells.end ? own : Range{std::min(cells.begin, own.begin), std::max(cells.end, own.end)};
    }
    return cells;
}

// Which of the positions touch a cell; as positions are monotonous, one range.
template <typename A>
Range touching(const Tap<A>* taps, int count, int cell) {
    const auto misses = [cell](const Tap<A>& tap) { return tap.weight(cell) == A(0); };
    int begin = 0, end = count;
    while (begin < end && misses(taps[begin])) ++begin;
    while (begin < end && misses(taps[end - 1])) --end;
    return {begin, end};
}

Range overlap(Range a, Range b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

// Whether some of these covered cells may touch row or column `index` of a patch: positions are monotonous.
template <typename A>
bool may_touch(float low, float high, Range cells, int size, int index) {
    const Tap<A> ends[] = {paste_tap<A>(low, high, cells.begin, size), paste_tap<A>(low, high, cells.end - 1, size)};
    return touched(ends, 2).contains(index);
}

int64_t image_of(const Roi& roi, int64_t region) {
    return std::upper_bound(roi.ptr, roi.ptr + roi.shape.images + 1, region) - roi.ptr - 1;
}

// The regions of an image whose rectangle meets a row, in order; returns how many.
template <typename A>
int64_t list_active(const Roi& roi, const Scratch<A>& scratch, int64_t image, int row, Active<A>* active) {
    int64_t count = 0;
    for (int64_t region = roi.ptr[image]; region < roi.ptr[image + 1]; ++region) {
        if (scratch.rectangles[region].y.contains(row)) active[count++].region = region;
    }
    return count;
}

// What paste_mean_backward knows of the cells in one block of a region: where they lie in the region's patch, and their
// share, 1 / the number of regions that cover a cell.
template <typename A>
struct Block {
    Rectangle cells = {{0, 0}, {0, 0}};
    Tap<A> down[kBlock], across[kBlock];
    A shares[kBlock * kBlock];  // [rows, columns] of the block, packed

    // For the box of a region and the rectangles of all regions of its image.
    void fill(Rectangle block, const float* box, int size, const Rectangle* begin, const Rectangle* end) {
        cells = block;
        for (int y = 0; y < rows(); ++y) down[y] = paste_tap<A>(box[1], box[3], cells.y.begin + y, size);
        for (int x = 0; x < columns(); ++x) across[x] = paste_tap<A>(box[0], box[2], cells.x.begin + x, size);
        int counts[kBlock * kBlock];
        std::fill_n(counts, rows() * columns(), 0);
        for (const Rectangle* other = begin; other < end; ++other) {
            const Range y = overlap(other->y, cells.y), x = overlap(other->x, cells.x);
            for (int row = y.begin; row < y.end; ++row) {
                int* from = counts + (row - cells.y.begin) * columns() - cells.x.begin;
                for (int column = x.begin; column < x.end; ++column) ++from[column];
            }
        }
        for (int i = 0; i < rows() * columns(); ++i) shares[i] = A(1) / A(counts[i]);
    }

    int rows() const { return cells.y.end - cells.y.begin; }
    int columns() const { return cells.x.end - cells.x.begin; }
};

template <typename A>
void fill_crop(const Roi& roi, bool clamp, ThreadRange regions) {
    const RoiShape& s = roi.shape;
    const Scratch<A> scratch(roi);
    for (int64_t region = regions.begin; region < regions.end; ++region) {
        const float* box = roi.boxes + 4 * region;
        Tap<A>*y = scratch.taps + 2 * region * s.size, *x = y + s.size;
        for (int i = 0; i < s.size; ++i) {
            y[i] = crop_tap<A>(box[1], box[3], i, s.size, s.height, clamp);
            x[i] = crop_tap<A>(box[0], box[2], i, s.size, s.width, clamp);
        }
        scratch.rectangles[region] = {touched(y, s.size), touched(x, s.size)};
    }
}

template <typename A>
void crop(const Roi& roi, bool clamp, const void* features, void* out, ThreadRange patch_rows, int64_t channel) {
    const RoiShape& s = roi.shape;
    Sum<A> sum(roi, features, out, s.regions * s.size * s.size, channel);
    for (int64_t item = patch_rows.begin; item < patch_rows.end; ++item) {
        const int64_t region = item / s.size;
        const int64_t image = image_of(roi, region);
        const float* box = roi.boxes + 4 * region;
        const Tap<A> y = crop_tap<A>(box[1], box[3], static_cast<int>(item % s.size), s.size, s.height, clamp);
        for (int j = 0; j < s.size; ++j) {
            sum.add(image * s.height * s.width, s.width, y, crop_tap<A>(box[0], box[2], j, s.size, s.width, clamp));
            sum.finish(item * s.size + j);
        }
    }
}

template <typename A>
void crop_backward(const Roi& roi, const void* grad, void* out, ThreadRange map_rows, int64_t channel) {
    const RoiShape& s = roi.shape;
    const Scratch<A> scratch(roi);
    Active<A>* active = scratch.active + map_rows.thread * s.regions;
    Sum<A> sum(roi, grad, out, s.images * s.height * s.width, channel);
    for (int64_t item = map_rows.begin; item < map_rows.end; ++item) {
        const int row = static_cast<int>(item % s.height);
        const int64_t count = list_active(roi, scratch, item / s.height, row, active);
        for (Active<A>* one = active; one < active + count; ++one) {
            one->rows = touching(scratch.taps + 2 * one->region * s.size, s.size, row);
        }
        for (int column = 0; column < s.width; ++column) {
            for (const Active<A>* one = active; one < active + count; ++one) {
                if (!scratch.rectangles[one->region].x.contains(column)) continue;
                const Tap<A>*y = scratch.taps + 2 * one->region * s.size, *x = y + s.size;
                const Range across = touching(x, s.size, column);
                for (int i = one->rows.begin; i < one->rows.end; ++i) {
                    for (int j = across.begin; j < across.end; ++j) {
                        sum.add((one->region * s.size + i) * s.size + j, y[i].weight(row) * x[j].weight(column));
                    }
                }
            }
            sum.finish(item * s.width + column);
        }
    }
}

template <typename A>
void fill_paste(const Roi& roi, ThreadRange regions) {
    const RoiShape& s = roi.shape;
    for (int64_t region = regions.begin; region < regions.end; ++region) {
        Scratch<A>(roi).rectangles[region] = paste_rectangle<A>(roi.boxes + 4 * region, s.height, s.width, s.size);
    }
}

template <typename A>
void paste(const Roi& roi, const void* memory, const void* patches, void* out, ThreadRange map_rows, int64_t channel) {
    const RoiShape& s = roi.shape;
    const Scratch<A> scratch(roi);
    Active<A>* active = scratch.active + map_rows.thread * s.regions;
    Sum<A> sum(roi, patches, out, s.images * s.height * s.width, channel);
    for (int64_t item = map_rows.begin; item < map_rows.end; ++item) {
        const int row = static_cast<int>(item % s.height);
        const int64_t count = list_active(roi, scratch, item / s.height, row, active);
        for (Active<A>* one = active; one < active + count; ++one) {
            const float* box = roi.boxes + 4 * one->region;
            one->position = paste_tap<A>(box[1], box[3], row, s.size);
        }
        for (int column = 0; column < s.width; ++column) {
            int64_t covering = 0;
            for (const Active<A>* one = active; one < active + count; ++one) {
                if (!scratch.rectangles[one->region].x.contains(column)) continue;
                const float* box = roi.boxes + 4 * one->region;
                sum.add(one->region * s.size * s.size, s.size, one->position,
                        paste_tap<A>(box[0], box[2], column, s.size));
                ++covering;
            }
            const int64_t cell = item * s.width + column;
            if (covering) {
                sum.finish(cell, memory, A(covering));
            } else {
                sum.copy(cell, memory);
            }
        }
    }
}

template <typename A>
void paste_backward(const Roi& roi, const void* grad, void* out, ThreadRange regions, int64_t channel) {
    const RoiShape& s = roi.shape;
    const Rectangle* rectangles = Scratch<A>(roi).rectangles;
    Sum<A> sum(roi, grad, out, s.regions * s.size * s.size, channel);
    Block<A> block;
    for (int64_t region = regions.begin; region < regions.end; ++region) {
        const float* box = roi.boxes + 4 * region;
        const int64_t image = image_of(roi, region);
        const Rectangle *own = rectangles + roi.ptr[image], *end = rectangles + roi.ptr[image + 1];
        const Rectangle& whole = rectangles[region];
        block.cells = {{0, 0}, {0, 0}};
        // Nearly every region is one block, filled once. Those of larger ones take turns for each element of the patch.
        for (int64_t item = 0; item < int64_t{s.size} * s.size; ++item) {
            const int i = static_cast<int>(item / s.size), j = static_cast<int>(item % s.size);
            for (int top = whole.y.begin; top < whole.y.end; top += kBlock) {
                for (int left = whole.x.begin; left < whole.x.end; left += kBlock) {
                    const Rectangle cells = {overlap({top, top + kBlock}, whole.y),
                                             overlap({left, left + kBlock}, whole.x)};
                    if (block.cells.y.begin != top || block.cells.x.begin != left || block.rows() == 0) {
                        if (!may_touch<A>(box[1], box[3], cells.y, s.size, i)) continue;
                        if (!may_touch<A>(box[0], box[2], cells.x, s.size, j)) continue;
                        block.fill(cells, box, s.size, own, end);
                    }
                    const Range rows = touching(block.down, block.rows(), i);
                    const Range columns = touching(block.across, block.columns(), j);
                    for (int y = rows.begin; y < rows.end; ++y) {
                        const int64_t first = (image * s.height + top + y) * s.width + left;
                        for (int x = columns.begin; x < columns.end; ++x) {
                            sum.add(first + x, block.down[y].weight(i) * block.across[x].weight(j) *
                                                   block.shares[y * block.columns() + x]);
                        }
                    }
                }
            }
            sum.finish(region * s.size * s.size + item);
        }
    }
}

}  // namespace

int64_t crop_scratch_bytes(const Roi& roi) {
    const int64_t samples = 2 * int64_t{roi.shape.size};
    return roi.dtype == Dtype::f64 ? Scratch<double>::bytes(roi, samples) : Scratch<float>::bytes(roi, samples);
}

int64_t paste_scratch_bytes(const Roi& roi) {
    return roi.dtype == Dtype::f64 ? Scratch<double>::bytes(roi, 0) : Scratch<float>::bytes(roi, 0);
}

void prepare_crop(const Roi& roi, bool clamp, ThreadRange regions) {
    roi.dtype == Dtype::f64 ? fill_crop<double>(roi, clamp, regions) : fill_crop<float>(roi, clamp, regions);
}

void prepare_paste(const Roi& roi, ThreadRange regions) {
    roi.dtype == Dtype::f64 ? fill_paste<double>(roi, regions) : fill_paste<float>(roi, regions);
}

void crop_resize(const Roi& roi, bool clamp, const void* features, void* out, ThreadRange patch_rows) {
    over_channels(roi,
                  [&](auto a, int64_t channel) { crop<decltype(a)>(roi, clamp, features, out, patch_rows, channel); });
}

void crop_resize_backward(const Roi& roi, const void* grad, void* out, ThreadRange map_rows) {
    over_channels(roi, [&](auto a, int64_t channel) { crop_backward<decltype(a)>(roi, grad, out, map_rows, channel); });
}

void paste_mean(const Roi& roi, const void* memory, const void* patches, void* out, ThreadRange map_rows) {
    over_channels(roi,
                  [&](auto a, int64_t channel) { paste<decltype(a)>(roi, memory, patches, out, map_rows, channel); });
}

void paste_mean_backward(const Roi& roi, const void* grad, void* out, ThreadRange regions) {
    over_channels(roi, [&](auto a, int64_t channel) { paste_backward<decltype(a)>(roi, grad, out, regions, channel); });
}

}  // namespace irnet::cpu
