// propagate, propagate_regions and their gradients for PyTorch on a CPU: sums over edges are made in cpu/graph.cpp, and
// multiplied with the weights of all types in one matrix product of PyTorch. The public functions of api.py have
// checked shapes.
//
// dx is the same as the result, over transposed edges and with transposed weights; for the weights' gradient the sums
// are made again. So nothing is kept but the inputs, and one buffer of sums exists at a time.

#include "graph.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <tuple>
#include <vector>

#include "bindings.h"

namespace irnet {

namespace {

// So many rows are multiplied in one product, if images have so few.
constexpr int64_t kRows = 2048;

// [T, D_in, D_out] -> [T * D_in, D_out].
Tensor stacked(const Tensor& weight) { return weight.reshape({-1, weight.size(2)}); }

// Adds a product to a sum that may be of a wider type.
void add_product(const Tensor& sum, const Tensor& a, const Tensor& b) {
    Tensor total = sum;
    sum.scalar_type() == a.scalar_type() ? total.addmm_(a, b) : total.add_(at::mm(a, b));
}

// --------------------------------------------------------------------------------------------------------- propagate

Tensor aggregate_rows(const Tensor& x, const cpu::Edges& edges, const std::vector<cpu::EdgeRow>& rows) {
    const int64_t count = static_cast<int64_t>(rows.size());
    const Tensor out = at::empty({count, edges.channels}, x.options());
    share(count, edges.channels, [&](cpu::Share some) {
        cpu::aggregate(edges, rows.data(), x.const_data_ptr(), out.mutable_data_ptr(), some);
    });
    return out;
}

// The edges of all types, one way: rows are type * nodes + node.
struct Csr {
    Tensor indptr, indices, values;
    int64_t nodes, types;

    Csr(const char* name, const Tensor& indptr, const Tensor& indices, const Tensor& values, int64_t nodes,
        int64_t types)
        : indptr(indptr.contiguous()),
          indices(indices.contiguous()),
          values(values.contiguous()),
          nodes(nodes),
          types(types) {
        const int64_t edges = indices.numel();
        TORCH_CHECK_VALUE(indptr.dim() == 1 && indptr.size(0) == nodes * types + 1 && values.numel() == edges, name,
                          ": wants indptr [T N + 1], indices [E] and values [E]");
        const int64_t* start = this->indptr.const_data_ptr<int64_t>();
        const int32_t* index = this->indices.const_data_ptr<int32_t>();
        TORCH_CHECK_VALUE(
            start[0] == 0 && start[nodes * types] == edges && std::is_sorted(start, start + nodes * types + 1) &&
                std::all_of(index, index + edges, [&](int32_t node) { return 0 <= node && node < nodes; }),
            name, ": the edges are not those of an EdgeSet of ", nodes, " nodes");
    }

    // Whether most rows have edges: then the others are not worth leaving out.
    bool dense() const {
        const int64_t* start = indptr.const_data_ptr<int64_t>();
        int64_t filled = 0;
        for (int64_t row = 0; row < nodes * types; ++row) filled += start[row] < start[row + 1];
        return 2 * filled > nodes * types;
    }

    // All rows, the types of a node behind each other.
    std::vector<cpu::EdgeRow> all_rows(int64_t images) const {
        std::vector<cpu::EdgeRow> rows;
        for (int64_t item = 0; item < images * nodes * types; ++item) {
            const int64_t node = item / types % nodes, type = item % types;
            rows.push_back({item / types / nodes, type * nodes + node});
        }
        return rows;
    }

    // The rows that have edges, one type after the other; those of type t begin at starts[t].
    std::vector<cpu::EdgeRow> filled_rows(int64_t images, std::vector<int64_t>& starts) const {
        const int64_t* start = indptr.const_data_ptr<int64_t>();
        std::vector<cpu::EdgeRow> rows;
        starts.assign(1, 0);
        for (int64_t type = 0; type < types; ++type) {
            for (int64_t item = 0; item < images * nodes; ++item) {
                const int64_t row = type * nodes + item % nodes;
                if (start[row] < start[row + 1]) rows.push_back({item / nodes, row});
            }
            starts.push_back(static_cast<int64_t>(rows.size()));
        }
        return rows;
    }

    // The sums over these rows' edges of x [images, nodes, channels].
    Tensor aggregate(const std::vector<cpu::EdgeRow>& rows, const Tensor& x) const {
        return aggregate_rows(x,
                              {dtype_of(x), capability(), nodes, x.size(2), indptr.const_data_ptr<int64_t>(),
                               indices.const_data_ptr<int32_t>(), values.const_data_ptr(), dtype_of(values)},
                              rows);
    }
};

// Of the products of filled rows with their types' weights, [rows, channels], the sum for every node of every image.
Tensor sum_types(const Csr& edges, const std::vector<cpu::EdgeRow>& rows, const Tensor& products, int64_t images) {
    const int64_t count = static_cast<int64_t>(rows.size());
    const auto node_of = [&](const cpu::EdgeRow& at) { return at.image * edges.nodes + at.row % edges.nodes; };
    std::vector<int64_t> starts(images * edges.nodes + 1), next;
    for (const cpu::EdgeRow& at : rows) ++starts[node_of(at) + 1];
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    next = starts;
    std::vector<int32_t> places(count);
    for (int64_t row = 0; row < count; ++row) places[next[node_of(rows[row])]++] = static_cast<int32_t>(row);
    const Tensor ones = at::ones({count}, products.options());
    std::vector<cpu::EdgeRow> nodes;
    for (int64_t node = 0; node < images * edges.nodes; ++node) nodes.push_back({0, node});
    return aggregate_rows(products,
                          {dtype_of(products), capability(), count, products.size(1), starts.data(), places.data(),
                           ones.const_data_ptr(), dtype_of(ones)},
                          nodes);
}

// Calls work(first image, their number) for groups of images that are multiplied together.
template <typename Work>
void over_groups(int64_t images, int64_t nodes, Work work) {
    const int64_t most = std::max<int64_t>(1, kRows / std::max<int64_t>(1, nodes));
    for (int64_t first = 0; first < images; first += most) work(first, std::min(most, images - first));
}

// The sum over types of A_t x W_t, x [B, N, D_in]: [B, N, D_out] in a dtype that may be wider than x's.
Tensor typed_sum(const Csr& edges, const Tensor& x, const Tensor& weight) {
    const bool dense = edges.dense();
    const at::ScalarType dtype = dense ? matrix_dtype(x.scalar_type()) : number_of_sums(x.scalar_type());
    const Tensor from = x.to(dtype).contiguous(), weights = weight.to(dtype), stack = stacked(weights);
    const int64_t images = x.size(0), nodes = edges.nodes, outputs = weight.size(2);
    const Tensor out = at::empty({images, nodes, outputs}, from.options());
    over_groups(images, nodes, [&](int64_t first, int64_t count) {
        const Tensor some = from.narrow(0, first, count);
        Tensor results = out.narrow(0, first, count).view({-1, outputs});
        if (dense) {
            const Tensor sums = edges.aggregate(edges.all_rows(count), some);
            at::mm_out(results, sums.view({count * nodes, -1}), stack);
            return;
        }
        std::vector<int64_t> starts;
        const std::vector<cpu::EdgeRow> rows = edges.filled_rows(count, starts);
        const Tensor sums = edges.aggregate(rows, some), products = at::empty({sums.size(0), outputs}, sums.options());
        for (int64_t type = 0; type < edges.types; ++type) {
            Tensor product = products.slice(0, starts[type], starts[type + 1]);
            at::mm_out(product, sums.slice(0, starts[type], starts[type + 1]), weights[type]);
        }
        results.copy_(sum_types(edges, rows, products, count));
    });
    return out;
}

// The gradient of `typed_sum` to the weights, in the numbers of sums.
Tensor weights_gradient(const Csr& edges, const Tensor& x, const Tensor& grad) {
    const bool dense = edges.dense();
    const at::ScalarType sums_dtype = number_of_sums(x.scalar_type());
    const at::ScalarType dtype = dense ? matrix_dtype(x.scalar_type()) : sums_dtype;
    const Tensor from = x.to(dtype).contiguous(), upstream = grad.to(dtype).contiguous();
    const int64_t nodes = edges.nodes, inputs = x.size(2), outputs = grad.size(2);
    const Tensor out = at::zeros({edges.types, inputs, outputs}, from.options().dtype(sums_dtype));
    over_groups(x.size(0), nodes, [&](int64_t first, int64_t count) {
        const Tensor some = from.narrow(0, first, count), g = upstream.narrow(0, first, count).view({-1, outputs});
        if (dense) {
            const Tensor sums = edges.aggregate(edges.all_rows(count), some);
            add_product(stacked(out), sums.view({count * nodes, -1}).t(), g);
            return;
        }
        std::vector<int64_t> starts;
        const std::vector<cpu::EdgeRow> rows = edges.filled_rows(count, starts);
        const Tensor sums = edges.aggregate(rows, some),
                     own = at::empty({sums.size(0)}, sums.options().dtype(at::kLong));
        std::transform(rows.begin(), rows.end(), own.mutable_data_ptr<int64_t>(),
                       [&](const cpu::EdgeRow& at) { return at.image * nodes + at.row % nodes; });
        const Tensor received = g.index_select(0, own);
        for (int64_t type = 0; type < edges.types; ++type) {
            add_product(out[type], sums.slice(0, starts[type], starts[type + 1]).t(),
                        received.slice(0, starts[type], starts[type + 1]));
        }
    });
    return out;
}

void check(const Tensor& x, const Tensor& weight) {
    TORCH_CHECK_VALUE(x.dim() == 3 && weight.dim() == 3 && weight.size(1) == x.size(2),
                      "propagate: wants x [B, N, D_in] and weight [T, D_in, D_out]");
}

Tensor propagate_cpu(const Tensor& x, const Tensor& indptr, const Tensor& indices, const Tensor& values, const Tensor&,
                     const Tensor&, const Tensor&, const Tensor& weight) {
    check(x, weight);
    const auto guard = no_autocast();
    return typed_sum({"propagate", indptr, indices, values, x.size(1), weight.size(0)}, x, weight).to(x.scalar_type());
}

std::tuple<Tensor, Tensor> propagate_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& indptr,
                                                  const Tensor& indices, const Tensor& values, const Tensor& t_indptr,
                                                  const Tensor& t_indices, const Tensor& t_values,
                                                  const Tensor& weight) {
    check(x, weight);
    check(grad, weight.mT());
    const auto guard = no_autocast();
    const char* name = "propagate_backward";
    const int64_t nodes = x.size(1), types = weight.size(0);
    TORCH_CHECK_VALUE(grad.size(0) == x.size(0) && grad.size(1) == nodes, name, ": wants grad of propagate's result");
    const Tensor d_x = typed_sum({name, t_indptr, t_indices, t_values, nodes, types}, grad, weight.mT());
    const Tensor d_weight = weights_gradient({name, indptr, indices, values, nodes, types}, x, grad);
    return {d_x.to(x.scalar_type()), d_weight.to(weight.scalar_type())};
}

// ------------------------------------------------------------------------------------------------- propagate_regions

// Regions of a call, and memory for their places.
struct Scene {
    Tensor boxes, bounds, places;
    cpu::Regions regions;

    Scene(const char* name, const Tensor& boxes, const Tensor& ptr, const Tensor& bandwidth)
        : boxes(boxes.contiguous()), bounds(ptr.contiguous()) {
        TORCH_CHECK_VALUE(boxes.dim() == 2 && boxes.size(1) == 4, name, ": boxes must be [R, 4]");
        const int64_t count = boxes.size(0), images = bounds.numel() - 1;
        places = at::empty({count, cpu::place_bytes()}, boxes.options().dtype(at::kByte));
        regions = {Dtype::f32,
                   capability(),
                   images,
                   0,
                   checked_bounds(name, bounds, images, count),
                   this->boxes.const_data_ptr<float>(),
                   bandwidth.item<double>(),
                   places.mutable_data_ptr()};
        share(count, 16, [&](cpu::Share some) { cpu::place_regions(regions, some); });
    }

    // Needed for Adjacency::columns.
    void sum_adjacency() const {
        share(boxes.size(0), pairs_of_a_region(), [&](cpu::Share some) { cpu::sum_adjacency(regions, some); });
    }

    // The sums over all regions' edges of the regions [first, first + count): [count, types * channels].
    Tensor aggregate(cpu::Adjacency adjacency, const Tensor& x, int64_t first, int64_t count) const {
        cpu::Regions some_regions = regions;
        some_regions.dtype = dtype_of(x);
        some_regions.channels = x.size(1);
        const Tensor out = at::empty({count, cpu::kRegionTypes * x.size(1)}, x.options());
        share(count, pairs_of_a_region() + 2 * x.size(1), [&](cpu::Share some) {
            cpu::aggregate_regions(some_regions, adjacency, first, x.const_data_ptr(), out.mutable_data_ptr(),
                                   {first + some.begin, first + some.end, some.thread});
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
    // About so much work as that many numbers.
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
    const Scene scene("propagate_regions", boxes, ptr, bandwidth);
    const at::ScalarType dtype = matrix_dtype(x.scalar_type());
    const Tensor from = x.to(dtype).contiguous(), stack = stacked(weight.to(dtype)),
                 out = at::empty({x.size(0), weight.size(2)}, from.options());
    scene.over_groups([&](int64_t first, int64_t count) {
        Tensor results = out.narrow(0, first, count);
        at::mm_out(results, scene.aggregate(cpu::Adjacency::rows, from, first, count), stack);
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
    const Scene scene(name, boxes, ptr, bandwidth);
    scene.sum_adjacency();
    const at::ScalarType dtype = matrix_dtype(x.scalar_type());
    const Tensor from = x.to(dtype).contiguous(), g = grad.to(dtype).contiguous(), weights = weight.to(dtype);
    const Tensor stack = stacked(weights), turned = stacked(weights.mT()), d_x = at::empty_like(from);
    const Tensor d_weight = at::zeros(stack.sizes(), from.options().dtype(number_of_sums(dtype)));
    const Tensor d_bandwidth = at::zeros({}, bandwidth.options());
    scene.over_groups([&](int64_t first, int64_t count) {
        const Tensor upstream = g.narrow(0, first, count);
        Tensor results = d_x.narrow(0, first, count);
        at::mm_out(results, scene.aggregate(cpu::Adjacency::columns, g, first, count), turned);
        add_product(d_weight, scene.aggregate(cpu::Adjacency::rows, from, first, count).t(), upstream);
        if (bandwidth_grad) {
            const Tensor slope = at::mm(scene.aggregate(cpu::Adjacency::slope, from, first, count), stack);
            d_bandwidth.add_((slope.to(at::kDouble) * upstream).sum());
        }
    });
    return {d_x.to(x.scalar_type()), d_weight.view(weight.sizes()).to(weight.scalar_type()), d_bandwidth};
}

}  // namespace

TORCH_LIBRARY_IMPL(irnet, CPU, m) {
    m.impl("propagate.cpp", propagate_cpu);
    m.impl("propagate_backward.cpp", propagate_backward_cpu);
    m.impl("propagate_regions.cpp", propagate_regions_cpu);
    m.impl("propagate_regions_backward.cpp", propagate_regions_backward_cpu);
}

}  // namespace irnet
