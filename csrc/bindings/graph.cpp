// propagate, propagate_regions and their gradients for PyTorch on a CPU: sums over edges are made in
// cpu/graph_kernel.cpp, matrix products with the weights are PyTorch's. The public functions of api.py have checked
// shapes.
//
// dx is the same as the result, over transposed edges and with transposed weights, and the sums made for it serve the
// weights' gradient: A_t x' grad = x' (A_t' grad). So nothing is kept but the inputs.

#include "graph.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace irnet {

namespace {

// So many nodes or regions are multiplied in one product, and sums over edges need no more memory than for these; where
// images are multiplied whole, at least one is.
constexpr int64_t kRows = 1024;

// So many non-empty rows are added up in one chain: sums of sums round less. Where rows without edges are among
// them, they make chains short.
constexpr int64_t kTogether = 32;

// The part of one type, of rows that hold all of them: [rows, types * channels] -> [rows, channels].
Tensor part_of(const Tensor& rows, int64_t type, int64_t types) {
    const int64_t channels = rows.size(1) / types;
    return rows.narrow(1, type * channels, channels);
}

// The products of all types' sums [rows, T * D_in] with their weights [T, D_in, D_out], added up. One type after the
// other, as sums of sums round less; products of bfloat16 are summed in float32, but each would be rounded.
void multiply(const Tensor& sums, const Tensor& weight, Tensor out) {
    const int64_t types = weight.size(0);
    if (out.scalar_type() == at::kBFloat16) {
        at::mm_out(out, sums, weight.flatten(0, 1));
        return;
    }
    for (int64_t type = 0; type < types; ++type) {
        at::addmm_out(out, out, part_of(sums, type, types), weight[type], /*beta=*/type > 0);
    }
}

// Adds a product to a sum, which may be of a wider type.
void add_product(Tensor sum, const Tensor& a, const Tensor& b) {
    sum.scalar_type() == a.scalar_type() ? sum.addmm_(a, b) : sum.add_(at::mm(a, b));
}

cpu::Channels channels_of(const Tensor& rows) { return {dtype_of(rows), rows.size(-1)}; }

// --------------------------------------------------------------------------------------------------------- propagate

// Rows of images that have edges, of one type after the other; those of type t begin at starts[t].
struct NonEmptyRows {
    std::vector<cpu::EdgeRow> rows;
    std::vector<int64_t> starts;
    int64_t images, nodes;

    int64_t size() const { return static_cast<int64_t>(rows.size()); }

    // [types * nodes] of every image: where it stands in `rows`, or -1.
    std::vector<int32_t> positions() const {
        const int64_t height = nodes * (static_cast<int64_t>(starts.size()) - 1);
        std::vector<int32_t> positions(images * height, -1);
        for (int64_t i = 0; i < size(); ++i) positions[rows[i].image * height + rows[i].row] = static_cast<int32_t>(i);
        return positions;
    }

    // The rows of x [images, nodes, channels] that belong to them.
    Tensor gathered(const Tensor& x) const {
        const Tensor index = at::empty({size()}, at::kLong);
        std::transform(rows.begin(), rows.end(), index.mutable_data_ptr<int64_t>(),
                       [&](const cpu::EdgeRow& at) { return at.image * nodes + at.row % nodes; });
        return x.reshape({images * nodes, x.size(2)}).index_select(0, index);
    }

    // Calls work(type, a function that takes those of a type out of a tensor [rows, ...]).
    template <typename Work>
    void over_types(Work work) const {
        for (size_t type = 0; type + 1 < starts.size(); ++type) {
            work(static_cast<int64_t>(type),
                 [&](const Tensor& all) { return all.slice(0, starts[type], starts[type + 1]); });
        }
    }
};

// The edges of all types, one way.
struct Csr {
    Tensor indptr, indices, values;
    cpu::Edges edges;
    int64_t non_empty = 0;  // rows that have edges

    // Of the three tensors of one direction.
    Csr(const char* name, at::TensorList tensors, int64_t nodes, int64_t types)
        : indptr(tensors[0].contiguous()),
          indices(tensors[1].contiguous()),
          values(tensors[2].to(acc_dtype(tensors[2].scalar_type())).contiguous()) {
        const int64_t count = indices.numel(), rows = nodes * types;
        TORCH_CHECK_VALUE(indptr.numel() == rows + 1 && values.numel() == count, name,
                          ": wants indptr [T N + 1], indices [E] and values [E]");
        const int64_t* start = indptr.const_data_ptr<int64_t>();
        const int32_t* index = indices.const_data_ptr<int32_t>();
        TORCH_CHECK_VALUE(start[0] == 0 && start[rows] == count && std::is_sorted(start, start + rows + 1) &&
                              std::all_of(index, index + count, [&](int32_t i) { return 0 <= i && i < nodes; }),
                          name, ": these are not the edges of an EdgeSet of ", nodes, " nodes");
        edges = {capability(), nodes, types, start, index, values.const_data_ptr(), dtype_of(values)};
        for (int64_t row = 0; row < rows; ++row) non_empty += start[row] < start[row + 1];
    }

    // The rows of some nodes of all images, the types of a node behind each other.
    std::vector<cpu::EdgeRow> rows_of_nodes(int64_t first, int64_t count) const {
        std::vector<cpu::EdgeRow> rows;
        for (int64_t item = first; item < first + count; ++item) {
            for (int64_t type = 0; type < edges.types; ++type) {
                rows.push_back({item / edges.nodes, type * edges.nodes + item % edges.nodes});
            }
        }
        return rows;
    }

    NonEmptyRows non_empty_rows(int64_t images) const {
        NonEmptyRows rows = {{}, {0}, images, edges.nodes};
        for (int64_t type = 0; type < edges.types; ++type) {
            for (int64_t item = 0; item < images * edges.nodes; ++item) {
                const int64_t row = type * edges.nodes + item % edges.nodes;
                if (edges.indptr[row] < edges.indptr[row + 1]) rows.rows.push_back({item / edges.nodes, row});
            }
            rows.starts.push_back(rows.size());
        }
        return rows;
    }

    // The sums over these rows' edges of x [images, nodes, channels].
    Tensor aggregate(const std::vector<cpu::EdgeRow>& rows, const Tensor& x) const {
        const int64_t count = static_cast<int64_t>(rows.size());
        const Tensor out = at::empty({count, x.size(-1)}, x.options());
        over_threads(count, 4 * x.size(-1), [&](cpu::ThreadRange range) {
            cpu::aggregate(edges, channels_of(x), rows.data(), x.const_data_ptr(), out.mutable_data_ptr(), range);
        });
        return out;
    }

    // add_types or add_edges for all nodes of all images, into `out`.
    template <typename Add>
    void add_up(Add add, const NonEmptyRows& rows, const Tensor& products, const Tensor& out) const {
        const std::vector<int32_t> positions = rows.positions();
        over_threads(rows.images * edges.nodes, 4 * products.size(1), [&](cpu::ThreadRange range) {
            add(edges, channels_of(products), positions.data(), products.const_data_ptr(), out.mutable_data_ptr(),
                range);
        });
    }
};

// The gradient to the weights, to which typed_sum adds: of A_t = B_t' and x = grad it is y' A_t x.
struct WeightsGradient {
    Tensor y, sum;
};

// All types' sums over edges, then one product with all their weights.
void multiply_together(const Csr& edges, const Tensor& x, const Tensor& weight, const WeightsGradient& gradient,
                       const Tensor& out) {
    const int64_t types = weight.size(0), nodes = x.size(0) * x.size(1);
    for (int64_t first = 0; first < nodes; first += kRows) {
        const int64_t count = std::min(kRows, nodes - first);
        const Tensor sums = edges.aggregate(edges.rows_of_nodes(first, count), x).view({count, types * x.size(2)});
        multiply(sums, weight, out.flatten(0, 1).narrow(0, first, count));
        if (!gradient.sum.defined()) continue;
        const Tensor own = gradient.y.flatten(0, 1).narrow(0, first, count);
        for (int64_t type = 0; type < types; ++type) {
            add_product(gradient.sum[type], own.t(), part_of(sums, type, types));
        }
    }
}

// A product for every type, of the rows alone that have edges of it; sums over edges come before, or after, whichever
// needs fewer rows: those that receive, or those that send.
void multiply_apart(const Csr& edges, const Csr& transposed, const Tensor& x, const Tensor& weight,
                    const WeightsGradient& gradient, const Tensor& out) {
    const bool sums_first = edges.non_empty <= transposed.non_empty;
    const int64_t nodes = x.size(1), most = std::max<int64_t>(1, kRows / std::max<int64_t>(1, nodes));
    for (int64_t first = 0; first < x.size(0); first += most) {
        const int64_t images = std::min(most, x.size(0) - first);
        const NonEmptyRows rows = (sums_first ? edges : transposed).non_empty_rows(images);
        const Tensor from = x.narrow(0, first, images);
        const Tensor factors = sums_first ? edges.aggregate(rows.rows, from) : rows.gathered(from);
        {
            const Tensor products = at::empty({rows.size(), weight.size(2)}, x.options());
            rows.over_types([&](int64_t type, auto of_type) {
                Tensor product = of_type(products);
                at::mm_out(product, of_type(factors), weight[type]);
            });
            edges.add_up(sums_first ? cpu::add_types : cpu::add_edges, rows, products, out.narrow(0, first, images));
        }  // of these buffers at most two at a time
        if (!gradient.sum.defined()) continue;
        const Tensor y = gradient.y.narrow(0, first, images);
        const Tensor own = sums_first ? rows.gathered(y) : transposed.aggregate(rows.rows, y);
        rows.over_types([&](int64_t type, auto of_type) {
            const std::vector<Tensor> left = of_type(own).split(kTogether), right = of_type(factors).split(kTogether);
            for (size_t i = 0; i < left.size(); ++i) add_product(gradient.sum[type], left[i].t(), right[i]);
        });
    }
}

// The sum over types of A_t x W_t, x [B, N, D_in]: [B, N, D_out].
Tensor typed_sum(const Csr& edges, const Csr& transposed, const Tensor& x, const Tensor& weight,
                 WeightsGradient gradient = {}) {
    const bool together = 2 * std::min(edges.non_empty, transposed.non_empty) > edges.edges.nodes * edges.edges.types;
    const at::ScalarType dtype = matrix_dtype(x.scalar_type());
    const Tensor from = x.to(dtype).contiguous(), weights = weight.to(dtype);
    const Tensor out = at::empty({x.size(0), x.size(1), weight.size(2)}, from.options());
    if (gradient.y.defined()) gradient.y = gradient.y.to(dtype).contiguous();
    if (together) {
        multiply_together(edges, from, weights, gradient, out);
    } else {
        multiply_apart(edges, transposed, from, weights, gradient, out);
    }
    return out.to(x.scalar_type());
}

void check(const char* name, const Tensor& x, at::TensorList edges, const Tensor& weight) {
    TORCH_CHECK_VALUE(edges.size() == 6, name, ": wants the six tensors of an EdgeSet, got ", edges.size());
    TORCH_CHECK_VALUE(x.dim() == 3 && weight.dim() == 3 && weight.size(0) >= 1 && weight.size(1) == x.size(2), name,
                      ": wants x [B, N, D_in] and weight [T, D_in, D_out], T at least 1");
}

Tensor propagate_cpu(const Tensor& x, at::TensorList edges, const Tensor& weight) {
    const char* name = "propagate";
    check(name, x, edges, weight);
    const auto guard = no_autocast();
    const int64_t nodes = x.size(1), types = weight.size(0);
    return typed_sum({name, edges.slice(0, 3), nodes, types}, {name, edges.slice(3, 3), nodes, types}, x, weight);
}

std::tuple<Tensor, Tensor> propagate_backward_cpu(const Tensor& grad, const Tensor& x, at::TensorList edges,
                                                  const Tensor& weight) {
    const char* name = "propagate_backward";
    check(name, x, edges, weight);
    TORCH_CHECK_VALUE(
        grad.dim() == 3 && grad.size(0) == x.size(0) && grad.size(1) == x.size(1) && grad.size(2) == weight.size(2),
        name, ": wants grad [B, N, D_out]");
    const auto guard = no_autocast();
    const int64_t nodes = x.size(1), types = weight.size(0);
    const Tensor d_weight = at::zeros(weight.sizes(), x.options().dtype(acc_dtype(x.scalar_type())));
    const Tensor d_x = typed_sum({name, edges.slice(3, 3), nodes, types}, {name, edges.slice(0, 3), nodes, types}, grad,
                                 weight.mT(), {x, d_weight});
    return {d_x, d_weight.to(weight.scalar_type())};
}

// ------------------------------------------------------------------------------------------------- propagate_regions

// Regions of a call, and memory for what is kept of each.
struct Scene {
    Tensor boxes, bounds, data;
    cpu::Regions regions;

    Scene(const char* name, const Tensor& x, const Tensor& boxes, const Tensor& ptr, const Tensor& bandwidth)
        : boxes(boxes.contiguous()), bounds(ptr.contiguous()) {
        TORCH_CHECK_VALUE(boxes.dim() == 2 && boxes.size(1) == 4, name, ": boxes must be [R, 4]");
        const int64_t count = boxes.size(0), images = bounds.numel() - 1;
        data = at::empty({count, cpu::data_bytes()}, boxes.options().dtype(at::kByte));
        regions = {dtype_of(x),
                   capability(),
                   images,
                   0,
                   checked_bounds(name, bounds, images, count),
                   this->boxes.const_data_ptr<float>(),
                   bandwidth.item<double>(),
                   data.mutable_data_ptr()};
        over_threads(count, 16, [&](cpu::ThreadRange range) { cpu::prepare_regions(regions, range); });
    }

    // Needed for Adjacency::columns.
    void sum_adjacency() const {
        over_threads(boxes.size(0), pairs_of_a_region(),
                     [&](cpu::ThreadRange range) { cpu::sum_adjacency(regions, range); });
    }

    // The sums over all regions' edges of the regions [first, first + count): [count, types * channels].
    Tensor aggregate(cpu::Adjacency adjacency, const Tensor& x, int64_t first, int64_t count) const {
        cpu::Regions some_regions = regions;
        some_regions.dtype = dtype_of(x);
        some_regions.channels = x.size(1);
        const Tensor out = at::empty({count, cpu::kRegionTypes * x.size(1)}, x.options());
        over_threads(count, pairs_of_a_region() + 2 * x.size(1), [&](cpu::ThreadRange range) {
            cpu::aggregate_regions(some_regions, adjacency, first, x.const_data_ptr(), out.mutable_data_ptr(),
                                   {first + range.begin, first + range.end, range.thread});
        });
        return out;
    }

    // Calls work(first region, their number) for groups of whole images that are multiplied together.
    template <typename Work>
    void over_groups(Work work) const {
        int64_t first = 0;
        for (int64_t image = 0; image < regions.images; ++image) {
            const int64_t end = regions.ptr[image + 1];
            const bool last = image + 1 == regions.images;
            if (end - first < kRows && !last) continue;
            if (end > first) work(first, end - first);
            first = end;
        }
    }

  private:
    // About as much work as that many elements.
    int64_t pairs_of_a_region() const { return 16 * (boxes.size(0) / std::max<int64_t>(1, regions.images) + 1); }
};

void check_regions(const char* name, const Tensor& x, const Tensor& boxes, const Tensor& weight) {
    TORCH_CHECK_VALUE(x.dim() == 2 && x.size(0) == boxes.size(0) && weight.dim() == 3 &&
                          weight.size(0) == cpu::kRegionTypes && weight.size(1) == x.size(1),
                      name, ": wants x [R, D_in], boxes [R, 4] and weight [5, D_in, D_out]");
}

Tensor propagate_regions_cpu(const Tensor& x, const Tensor& boxes, const Tensor& ptr, const Tensor& weight,
                             const Tensor& bandwidth) {
    check_regions("propagate_regions", x, boxes, weight);
    const auto guard = no_autocast();
    const Scene scene("propagate_regions", x, boxes, ptr, bandwidth);
    const at::ScalarType dtype = matrix_dtype(x.scalar_type());
    const Tensor from = x.to(dtype).contiguous(), weights = weight.to(dtype),
                 out = at::empty({x.size(0), weight.size(2)}, from.options());
    scene.over_groups([&](int64_t first, int64_t count) {
        multiply(scene.aggregate(cpu::Adjacency::rows, from, first, count), weights, out.narrow(0, first, count));
    });
    return out.to(x.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> propagate_regions_backward_cpu(const Tensor& grad, const Tensor& x,
                                                                  const Tensor& boxes, const Tensor& ptr,
                                                                  const Tensor& weight, const Tensor& bandwidth,
                                                                  bool bandwidth_grad) {
    const char* name = "propagate_regions_backward";
    check_regions(name, x, boxes, weight);
    check_regions(name, grad, boxes, weight.mT());
    const auto guard = no_autocast();
    const Scene scene(name, x, boxes, ptr, bandwidth);
    scene.sum_adjacency();
    const at::ScalarType dtype = matrix_dtype(x.scalar_type());
    const Tensor from = x.to(dtype).contiguous(), g = grad.to(dtype).contiguous(), weights = weight.to(dtype);
    const Tensor d_x = at::empty_like(from);
    const Tensor d_weight = at::zeros(weight.sizes(), from.options().dtype(acc_dtype(dtype)));
    const Tensor d_bandwidth = at::zeros({}, bandwidth.options());
    scene.over_groups([&](int64_t first, int64_t count) {
        const Tensor upstream = g.narrow(0, first, count), own = from.narrow(0, first, count);
        const Tensor sums = scene.aggregate(cpu::Adjacency::columns, g, first, count);
        multiply(sums, weights.mT(), d_x.narrow(0, first, count));
        for (int64_t type = 0; type < cpu::kRegionTypes; ++type) {
            add_product(d_weight[type], own.t(), part_of(sums, type, cpu::kRegionTypes));
        }
        if (bandwidth_grad) {
            const Tensor slope = at::empty_like(upstream);
            multiply(scene.aggregate(cpu::Adjacency::slope, from, first, count), weights, slope);
            d_bandwidth.add_((slope.to(at::kDouble) * upstream).sum());
        }
    });
    return {d_x.to(x.scalar_type()), d_weight.to(weight.scalar_type()), d_bandwidth};
}

}  // namespace

TORCH_LIBRARY_IMPL(irnet, CPU, m) {
    m.impl("propagate.cpp", propagate_cpu);
    m.impl("propagate_backward.cpp", propagate_backward_cpu);
    m.impl("propagate_regions.cpp", propagate_regions_cpu);
    m.impl("propagate_regions_backward.cpp", propagate_regions_backward_cpu);
}

}  // namespace irnet
