// Which rows a node or region hears, and with what weights, on a CPU; the sum itself is in weighted_sum.h. Adjacency of
// regions follows from their boxes, one row or column at a time: none is stored.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "graph.h"
#include "weighted_sum.h"

namespace irnet::cpu {

namespace {

// Calls work(zero) with a 0 of the type in which sums for this dtype are accumulated.
template <typename Work>
void with_acc_type(Dtype dtype, Work work) {
    dtype == Dtype::f64 ? work(double{}) : work(float{});
}

template <typename A>
void sum_terms(WeightedSum<A> sum, const std::vector<Term<A>>& terms, int64_t channels, void* out) {
    sum(terms.data(), static_cast<int>(terms.size()), channels, {out, nullptr, A(1), nullptr, false, false});
}

// ---------------------------------------------------------------------------------------------------- given edges

// Calls work(index, value) for the edges of a row.
template <typename Work>
void over_edges(const Edges& edges, int64_t row, Work work) {
    for (int64_t edge = edges.indptr[row]; edge < edges.indptr[row + 1]; ++edge) {
        const bool wide = edges.values_dtype == Dtype::f64;
        work(edges.indices[edge],
             wide ? static_cast<const double*>(edges.values)[edge] : static_cast<const float*>(edges.values)[edge]);
    }
}

// Makes one sum for each item: work(item, add) calls add(row of `from`, weight) for its terms.
template <typename Work>
void make_sums(Capability capability, Channels channels, const void* from, void* out, ThreadRange items, Work work) {
    with_acc_type(channels.dtype, [&](auto zero) {
        using A = decltype(zero);
        const WeightedSum<A> sum = weighted_sum<A>(channels.dtype, capability);
        const int64_t row_bytes = channels.count * bytes(channels.dtype);
        std::vector<Term<A>> terms;
        for (int64_t item = items.begin; item < items.end; ++item) {
            terms.clear();
            work(item, [&](int64_t row, double weight) {
                terms.push_back({static_cast<const char*>(from) + row * row_bytes, static_cast<A>(weight)});
            });
            sum_terms(sum, terms, channels.count, static_cast<char*>(out) + item * row_bytes);
        }
    });
}

// -------------------------------------------------------------------------------------------------- between regions

constexpr int kSides = 4, kOverlap = 4;  // the types: four sides, then the overlap

// Geometry is computed in double, whatever the dtype of the sums: no distance or area of floats overflows.
struct RegionData {
    double x1, y1, x2, y2, x, y;
    bool usable;
    double nearest[kSides], total[kRegionTypes];
};

double distance(const RegionData& a, const RegionData& b) {
    const double x = a.x - b.x, y = a.y - b.y;
    return std::sqrt(x * x + y * y);
}

// Calls work(side) for the sides of `from` on which `to` lies: at most one in x and one in y.
template <typename Work>
void over_sides(const RegionData& from, const RegionData& to, Work work) {
    if (to.x != from.x) work(to.x < from.x ? 0 : 1);
    if (to.y != from.y) work(to.y < from.y ? 2 : 3);
}

double iou(const RegionData& a, const RegionData& b) {
    const double width = std::min(a.x2, b.x2) - std::max(a.x1, b.x1);
    const double height = std::min(a.y2, b.y2) - std::max(a.y1, b.y1);
    if (!(width > 0 && height > 0)) return 0;
    const auto area = [](const RegionData& one) { return (one.x2 - one.x1) * (one.y2 - one.y1); };
    return width * height / (area(a) + area(b) - width * height);
}

// One image's regions.
struct Image {
    const RegionData *begin, *end;
    double bandwidth;

    // Calls work(other) for all that a region may hear.
    template <typename Work>
    void over_others(const RegionData& own, Work work) const {
        for (const RegionData* other = begin; own.usable && other < end; ++other) {
            if (other != &own && other->usable) work(*other);
        }
    }

    // The largest one of a row is 1: the row's sum undoes the factor, and far neighbours do not vanish.
    double kappa(double distance, double nearest) const { return std::exp(-(distance - nearest) / bandwidth); }
};

// A row of adjacency, before it is divided by its sums: the neighbours of each type, and their weights.
struct Row {
    struct Neighbour {
        int64_t region;
        double weight, beyond;  // beyond: how much farther than the nearest
    };
    std::vector<Neighbour> of[kRegionTypes];
    std::vector<double> distances;
    double nearest[kSides], total[kRegionTypes];

    void fill(const Image& image, const RegionData& own) {
        std::fill_n(nearest, kSides, std::numeric_limits<double>::infinity());
        std::fill_n(total, kRegionTypes, 0.0);
        for (auto& neighbours : of) neighbours.clear();
        distances.clear();
        image.over_others(own, [&](const RegionData& other) {
            const double d = distance(own, other);
            distances.push_back(d);
            over_sides(own, other, [&](int side) { nearest[side] = std::min(nearest[side], d); });
        });
        const double* d = distances.data();
        image.over_others(own, [&](const RegionData& other) {
            const int64_t region = &other - image.begin;
            over_sides(own, other,
                       [&](int side) { add(side, {region, image.kappa(*d, nearest[side]), *d - nearest[side]}); });
            add(kOverlap, {region, iou(own, other), 0});
            ++d;
        });
    }

    // Makes of it the derivative to the bandwidth, after the division by its sums.
    void differentiate(double bandwidth) {
        for (int side = 0; side < kSides; ++side) {
            double mean = 0;
            for (const Neighbour& one : of[side]) mean += one.weight / total[side] * one.beyond;
            for (Neighbour& one : of[side]) one.weight *= (one.beyond - mean) / (bandwidth * bandwidth);
        }
        of[kOverlap].clear();
    }

  private:
    void add(int type, Neighbour neighbour) {
        if (neighbour.weight == 0) return;
        total[type] += neighbour.weight;
        of[type].push_back(neighbour);
    }
};

RegionData* data_of(const Regions& regions) { return static_cast<RegionData*>(regions.data); }

// Calls work(image, region) for the regions of a range.
template <typename Work>
void over_regions(const Regions& regions, ThreadRange range, Work work) {
    const int64_t* bound = std::upper_bound(regions.ptr, regions.ptr + regions.images + 1, range.begin);
    const RegionData* all = data_of(regions);
    for (int64_t region = range.begin; region < range.end; ++region) {
        while (*bound <= region) ++bound;
        work(Image{all + bound[-1], all + *bound, regions.bandwidth}, region);
    }
}

template <typename A>
void aggregate_regions(const Regions& regions, Adjacency adjacency, int64_t first, const char* x, char* out,
                       ThreadRange range) {
    const WeightedSum<A> sum = weighted_sum<A>(regions.dtype, regions.capability);
    const int64_t row_bytes = regions.channels * bytes(regions.dtype);
    std::vector<Term<A>> terms[kRegionTypes];
    Row row;
    over_regions(regions, range, [&](const Image& image, int64_t region) {
        const RegionData& own = data_of(regions)[region];
        const char* heard = x + (image.begin - data_of(regions)) * row_bytes;
        const auto add = [&](int type, int64_t other, double weight) {
            terms[type].push_back({heard + other * row_bytes, static_cast<A>(weight)});
        };
        for (auto& some_terms : terms) some_terms.clear();
        if (adjacency == Adjacency::columns) {
            image.over_others(own, [&](const RegionData& other) {
                const double d = distance(other, own), shared = iou(other, own);
                over_sides(other, own, [&](int side) {
                    add(side, &other - image.begin, image.kappa(d, other.nearest[side]) / other.total[side]);
                });
                if (shared > 0) add(kOverlap, &other - image.begin, shared / other.total[kOverlap]);
            });
        } else {
            row.fill(image, own);
            if (adjacency == Adjacency::slope) row.differentiate(image.bandwidth);
            for (int type = 0; type < kRegionTypes; ++type) {
                for (const auto& one : row.of[type]) add(type, one.region, one.weight / row.total[type]);
            }
        }
        for (int type = 0; type < kRegionTypes; ++type) {
            sum_terms(sum, terms[type], regions.channels, out + ((region - first) * kRegionTypes + type) * row_bytes);
        }
    });
}

}  // namespace

void aggregate(const Edges& edges, Channels channels, const EdgeRow* rows, const void* x, void* out,
               ThreadRange range) {
    make_sums(edges.capability, channels, x, out, range, [&](int64_t item, auto add) {
        const int64_t first = rows[item].image * edges.nodes;
        over_edges(edges, rows[item].row, [&](int64_t node, double value) { add(first + node, value); });
    });
}

void add_types(const Edges& edges, Channels channels, const int32_t* positions, const void* products, void* out,
               ThreadRange range) {
    make_sums(edges.capability, channels, products, out, range, [&](int64_t item, auto add) {
        const int32_t* own = positions + item / edges.nodes * edges.types * edges.nodes + item % edges.nodes;
        for (int64_t type = 0; type < edges.types; ++type) {
            if (own[type * edges.nodes] >= 0) add(own[type * edges.nodes], 1);
        }
    });
}

void add_edges(const Edges& edges, Channels channels, const int32_t* positions, const void* products, void* out,
               ThreadRange range) {
    make_sums(edges.capability, channels, products, out, range, [&](int64_t item, auto add) {
        const int32_t* image = positions + item / edges.nodes * edges.types * edges.nodes;
        for (int64_t type = 0; type < edges.types; ++type) {
            const int64_t first = type * edges.nodes;
            over_edges(edges, first + item % edges.nodes, [&](int64_t node, double value) {
                // Without a position only if the transposed edges are not these edges' transpose.
                if (image[first + node] >= 0) add(image[first + node], value);
            });
        }
    });
}

int64_t data_bytes() { return sizeof(RegionData); }

void prepare_regions(const Regions& regions, ThreadRange range) {
    for (int64_t region = range.begin; region < range.end; ++region) {
        const float* box = regions.boxes + 4 * region;
        // Bounded as in the reference, whose float32 would overflow.
        const auto at = [&](int i) { return static_cast<double>(std::clamp(box[i], -1e37f, 1e37f)); };
        // Centres decide who lies left of whom: rounded as in the reference, so that no two implementations disagree.
        const auto centre = [&](double low, double high) {
            const float sum = static_cast<float>(low) + static_cast<float>(high);
            return regions.dtype == Dtype::f64 ? (low + high) / 2 : static_cast<double>(sum / 2);
        };
        RegionData& own = data_of(regions)[region];
        own = {at(0), at(1), at(2), at(3), centre(at(0), at(2)), centre(at(1), at(3)), true, {}, {}};
        own.usable = std::all_of(box, box + 4, [](float coordinate) { return std::isfinite(coordinate); });
    }
}

void sum_adjacency(const Regions& regions, ThreadRange range) {
    Row row;
    over_regions(regions, range, [&](const Image& image, int64_t region) {
        RegionData& own = data_of(regions)[region];
        row.fill(image, own);
        std::copy_n(row.nearest, kSides, own.nearest);
        std::copy_n(row.total, kRegionTypes, own.total);
    });
}

void aggregate_regions(const Regions& regions, Adjacency adjacency, int64_t first, const void* x, void* out,
                       ThreadRange range) {
    with_acc_type(regions.dtype, [&](auto zero) {
        aggregate_regions<decltype(zero)>(regions, adjacency, first, static_cast<const char*>(x),
                                          static_cast<char*>(out), range);
    });
}

}  // namespace irnet::cpu
