// Which way a 3 x 3 convolution of maps or patches and its gradients are computed: oneDNN's, through PyTorch; matrix
// products with fewer products than taps (winograd.h); a matrix product for every tap.

#include "convolution.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <vector>

#include "tensors.h"
#include "winograd.h"

namespace irnet {

namespace {

// In float32 Winograd's way rounds no more than oneDNN's, which makes one long sum; 16 bits are too few for
// combinations. Small products are slow products, and the kernels' combinations cost the same for any number of
// cells: the bounds are where it was seen to be no slower (benchmarks/NOTES.md). convolution/workspace.py of
// irnet_kernels repeats them.
bool fewer_products(const Tensor& maps, const Tensor& kernels) {
    const int64_t height = maps.size(2), width = maps.size(3);
    return maps.scalar_type() == at::kFloat && std::min(height, width) >= 5 && maps.size(0) * height * width >= 768 &&
           std::min(kernels.size(0), kernels.size(1)) >= 256;
}

// So many rows are multiplied at once, or those of one map.
constexpr int64_t kRows = 512;

// What all products of a pass share. Maps are worked on in groups, one after the other, in the same memory.
struct Products {
    cpu::Winograd winograd;
    int64_t maps, group;
    at::TensorOptions options;

    explicit Products(const Tensor& maps)
        : winograd(capability(), static_cast<int>(maps.size(2)), static_cast<int>(maps.size(3))),
          maps(maps.size(0)),
          group(std::min(this->maps, std::max<int64_t>(1, kRows / winograd.rows(0, 0)))),
          options(at::TensorOptions().dtype(at::kFloat)) {}

    // Memory for the rows of any pair of parts, of which part 0 has most; for a given j that of any i.
    Tensor space(int64_t channels, int j = 0) const {
        return at::empty({group * winograd.rows(0, j), channels}, options);
    }
    // Memory for a combination of kernels for every j that there is.
    std::array<Tensor, cpu::kParts> combinations(int64_t outputs, int64_t inputs) const {
        std::array<Tensor, cpu::kParts> all;
        for (int j = 0; j < cpu::kParts; ++j) {
            all[j] = at::empty({winograd.across.count(j) > 0 ? outputs : 0, inputs}, options);
        }
        return all;
    }

    Tensor combined(int i, int j, bool as_outputs, const Tensor& some, const Tensor& space) const {
        Tensor rows = space.narrow(0, 0, some.size(0) * winograd.rows(i, j));
        const int64_t channels = some.size(1);
        over_threads(some.size(0) * winograd.down.count(i), winograd.across.count(j) * channels * 4,
                     [&](cpu::ThreadRange lines) {
                         cpu::winograd_rows(winograd, i, j, as_outputs, channels, some.const_data_ptr<float>(),
                                            rows.mutable_data_ptr<float>(), lines);
                     });
        return rows;
    }

    template <typename Work>
    void over_groups(Work work) const {
        for (int64_t first = 0; first < maps; first += group) work(first, std::min(group, maps - first));
    }
};

std::array<const float*, cpu::kParts> pointers(const std::array<Tensor, cpu::kParts>& tensors) {
    std::array<const float*, cpu::kParts> all;
    for (int j = 0; j < cpu::kParts; ++j) all[j] = tensors[j].const_data_ptr<float>();
    return all;
}

// The convolution or, with kernels rotated by 180 degrees and their channels exchanged, its gradient to the maps.
Tensor convolve_by_products(const Tensor& maps, const Tensor& kernels, const Tensor& bias, bool rotated) {
    const Products products(maps);
    const cpu::Winograd& winograd = products.winograd;
    const int64_t outputs = kernels.size(0), inputs = kernels.size(1), made = rotated ? inputs : outputs;
    const int64_t height = maps.size(2), width = maps.size(3);
    const Tensor out = empty_map(maps, {maps.size(0), made, height, width}), space = products.space(maps.size(1));
    const std::array<Tensor, cpu::kParts> combinations = products.combinations(outputs, inputs);
    std::array<Tensor, cpu::kParts> spaces;
    for (int j = 0; j < cpu::kParts; ++j) spaces[j] = products.space(made, j);
    for (int i = 0; i < cpu::kParts; ++i) {
        for (int j = 0; j < cpu::kParts; ++j) {
            if (winograd.rows(i, j) == 0) continue;
            over_threads(outputs, 9 * inputs, [&](cpu::ThreadRange range) {
                cpu::winograd_kernels(winograd, i, j, rotated, inputs, kernels.const_data_ptr<float>(),
                                      combinations[j].mutable_data_ptr<float>(), range);
            });
        }
        products.over_groups([&](int64_t first, int64_t count) {
            const Tensor some = maps.narrow(0, first, count), made_here = out.narrow(0, first, count);
            for (int j = 0; j < cpu::kParts; ++j) {
                if (winograd.rows(i, j) == 0) continue;
                Tensor product = spaces[j].narrow(0, 0, count * winograd.rows(i, j));
                at::mm_out(product, products.combined(i, j, false, some, space),
                           rotated ? combinations[j] : combinations[j].t());
            }
            over_threads(count * height, width * made * 4, [&](cpu::ThreadRange lines) {
                cpu::winograd_outputs(winograd, i, made, pointers(spaces).data(),
                                      bias.defined() ? bias.const_data_ptr<float>() : nullptr,
                                      made_here.mutable_data_ptr<float>(), lines);
            });
        });
    }
    return out;
}

Tensor kernels_gradient_by_products(const Tensor& grad, const Tensor& maps) {
    const Products products(maps);
    const cpu::Winograd& winograd = products.winograd;
    const int64_t outputs = grad.size(1), inputs = maps.size(1);
    const Tensor out = at::empty({outputs, 3, 3, inputs}, products.options);
    const Tensor ours = products.space(outputs), theirs = products.space(inputs);
    std::array<Tensor, cpu::kParts> combinations = products.combinations(outputs, inputs);
    for (int i = 0; i < cpu::kParts; ++i) {
        products.over_groups([&](int64_t first, int64_t count) {
            const Tensor some = maps.narrow(0, first, count), some_grad = grad.narrow(0, first, count);
            for (int j = 0; j < cpu::kParts; ++j) {
                if (winograd.rows(i, j) == 0) continue;
                const Tensor left = products.combined(i, j, true, some_grad, ours).t(),
                             right = products.combined(i, j, false, some, theirs);
                if (first == 0) {
                    at::mm_out(combinations[j], left, right);
                } else {
                    combinations[j].addmm_(left, right);
                }
            }
        });
        over_threads(outputs, 9 * inputs * 4, [&](cpu::ThreadRange range) {
            cpu::winograd_kernels_gradient(winograd, i, inputs, pointers(combinations).data(),
                                           out.mutable_data_ptr<float>(), range);
        });
    }
    return out.permute({0, 3, 1, 2});
}

// [R, C, P, P] in bfloat16 -> [C, P, P, R], in blocks that are gathered first: a few times as fast as PyTorch's copy.
Tensor transposed(const Tensor& patches) {
    const int64_t regions = patches.size(0), channels = patches.size(1), cells = patches.size(2) * patches.size(3);
    const Tensor out = at::empty({channels, patches.size(2), patches.size(3), regions}, patches.options());
    const at::BFloat16* from = patches.const_data_ptr<at::BFloat16>();
    at::BFloat16* to = out.mutable_data_ptr<at::BFloat16>();
    constexpr int64_t most = 32;
    const auto block = [&](int64_t cell, int64_t region, int64_t channel) {
        at::BFloat16 tile[most][most];
        const int64_t rows = std::min(most, regions - region), columns = std::min(most, channels - channel);
        for (int64_t r = 0; r < rows; ++r) {
            std::copy_n(from + ((region + r) * cells + cell) * channels + channel, columns, tile[r]);
        }
        for (int64_t c = 0; c < columns; ++c) {
            at::BFloat16* row = to + ((channel + c) * cells + cell) * regions + region;
            for (int64_t r = 0; r < rows; ++r) row[r] = tile[r][c];
        }
    };
    over_threads(cells, regions * channels, [&](cpu::ThreadRange range) {
        for (int64_t cell = range.begin; cell < range.end; ++cell) {
            for (int64_t region = 0; region < regions; region += most) {
                for (int64_t channel = 0; channel < channels; channel += most) block(cell, region, channel);
            }
        }
    });
    return out;
}

// By columns, which are dimension `dim`: all but the last one, all, all but the first one.
std::array<Tensor, 3> shifted(const Tensor& cells, int64_t dim) {
    const int64_t size = cells.size(dim);
    return {cells.narrow(dim, 0, size - 1).contiguous(), cells.contiguous(),
            cells.narrow(dim, 1, size - 1).contiguous()};
}

// For every tap one matrix product over all pairs of a cell and its neighbour, which lie in one piece in what `shifted`
// makes. The left factor is transposed beforehand, once for all patches.
std::vector<Tensor> kernels_gradients_by_taps(const Tensor& grad, at::TensorList all_patches) {
    const std::array<Tensor, 3> ours = shifted(transposed(packed(grad)), 2);
    const int64_t size = grad.size(2);
    std::vector<Tensor> found;
    for (const Tensor& patches : all_patches) {
        const std::array<Tensor, 3> theirs = shifted(patches.permute({2, 3, 0, 1}), 1);
        const Tensor out = at::empty({grad.size(1), 3, 3, patches.size(1)}, grad.options());
        for (int64_t tap = 0; tap < 9; ++tap) {
            const int64_t y = tap / 3 - 1, x = tap % 3 - 1, rows = size - std::abs(y);
            Tensor product = out.select(1, y + 1).select(1, x + 1);
            at::mm_out(product, ours[1 - x].narrow(1, std::max<int64_t>(0, -y), rows).flatten(1),
                       theirs[1 + x].narrow(0, std::max<int64_t>(0, y), rows).flatten(0, 2));
        }
        found.push_back(out.permute({0, 3, 1, 2}));
    }
    return found;
}

// PyTorch's, to the patches or to the kernels.
Tensor convolve_backward(const Tensor& grad, const Tensor& patches, const Tensor& kernels, bool of_patches) {
    const std::vector<int64_t> one = {1, 1};
    const auto both = at::convolution_backward(grad, patches, kernels, at::OptionalIntArrayRef(), one, one, one, false,
                                               {0, 0}, 1, {of_patches, !of_patches, false});
    return packed(of_patches ? std::get<0>(both) : std::get<1>(both));
}

}  // namespace

Tensor convolve(const Tensor& patches, const Tensor& kernels, const Tensor& bias) {
    if (fewer_products(patches, kernels)) {
        return convolve_by_products(packed(patches), packed(kernels), bias.defined() ? bias.contiguous() : bias, false);
    }
    const std::optional<Tensor> maybe = bias.defined() ? std::optional(bias) : std::nullopt;
    return packed(at::conv2d(patches, kernels, maybe, at::IntArrayRef{1, 1}, at::IntArrayRef{1, 1}));
}

Tensor patches_gradient(const Tensor& grad, const Tensor& patches, const Tensor& kernels) {
    if (fewer_products(patches, kernels)) return convolve_by_products(packed(grad), packed(kernels), {}, true);
    return convolve_backward(grad, patches, kernels, true);
}

std::vector<Tensor> kernels_gradients(const Tensor& grad, at::TensorList patches, const Tensor& kernels) {
    // In bfloat16 a fifth faster than the convolution's own, in float32 no faster.
    if (grad.scalar_type() == at::kBFloat16) return kernels_gradients_by_taps(grad, patches);
    std::vector<Tensor> found;
    for (const Tensor& part : patches) {
        found.push_back(fewer_products(part, kernels) ? kernels_gradient_by_products(packed(grad), packed(part))
                                                      : convolve_backward(grad, part, kernels, false));
    }
    return found;
}

}  // namespace irnet
