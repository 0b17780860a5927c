// conv_gru and its gradient for PyTorch on a CPU: the convolutions are those of convolution.h, what lies between them
// is fused in cpu/gru_kernel.cpp. The public function of api.py has checked shapes.
//
// Gates of one channel are not convolved: both are one skinny product of every row of channels with the weights of all
// taps, and a shifted sum. Gates as wide as the state are convolutions like the candidate's.
//
// float16, and bfloat16 where the processor has no products of it, are computed in float32.

#include "gru.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <array>
#include <tuple>
#include <vector>

#include "convolution.h"
#include "tensors.h"

namespace irnet {

namespace {

// In the order of ConvGRUWeights.
enum { kNewX, kNewH, kResetX, kResetH, kUpdateX, kUpdateH, kNewBias, kResetBias, kUpdateBias, kWeights };

// The dtype in which a call computes.
at::ScalarType compute_dtype(const Tensor& inputs, bool wide) {
    // Wide gates take more sums and products, whose roundings to bfloat16 would add up.
    return wide ? acc_dtype(inputs.scalar_type()) : matrix_dtype(inputs.scalar_type());
}

// To a dtype and back.
Tensor rounded(const Tensor& tensor, at::ScalarType dtype) { return tensor.to(dtype).to(tensor.scalar_type()); }

std::vector<Tensor> converted(at::TensorList tensors, at::ScalarType dtype) {
    std::vector<Tensor> all;
    for (const Tensor& tensor : tensors) all.push_back(tensor.to(dtype));
    return all;
}

// [R, C, P, P] -> [R * P * P, C], a view.
Tensor rows_of(const Tensor& patches) { return patches.permute({0, 2, 3, 1}).reshape({-1, patches.size(1)}); }

// The kernels [1, C, 3, 3] of both gates -> [kColumns, C].
Tensor columns_of(const Tensor& reset, const Tensor& update) {
    return at::cat({reset.flatten(2)[0], update.flatten(2)[0]}, 1).t().contiguous();
}

// The product of `columns` [rows, kColumns], transposed, with all rows of the patches: [kColumns, C]. In float32 region
// by region, as sums of sums round less; products of bfloat16 are summed in float32, but each would be rounded.
Tensor product_of(const Tensor& columns, const Tensor& patches) {
    if (patches.scalar_type() == at::kBFloat16) return at::mm(columns.t(), rows_of(patches));
    const Tensor parts = patches.permute({0, 2, 3, 1}).flatten(1, 2);
    return at::bmm(columns.view({parts.size(0), parts.size(1), cpu::kColumns}).transpose(1, 2), parts).sum(0);
}

// The way back, for one of the gates.
Tensor kernel_of(const Tensor& columns, int64_t gate) {
    // A copy: results must not share memory.
    return columns.narrow(0, gate * cpu::kTaps, cpu::kTaps).t().clone(at::MemoryFormat::Contiguous).view({1, -1, 3, 3});
}

cpu::Gru gru_of(const Tensor& patches, bool wide) {
    const at::ScalarType dtype = patches.scalar_type();
    TORCH_INTERNAL_ASSERT(dtype == (wide ? acc_dtype(dtype) : matrix_dtype(dtype)), "no kernel for ", dtype);
    return {dtype_of(patches), capability(), patches.size(1), static_cast<int>(patches.size(2)), wide};
}

// The products of every row of x and h with the weights of gates of one channel, their sums: [rows, kColumns].
Tensor gate_products(const cpu::Gru& gru, const Tensor& x, const Tensor& h, const Tensor& weights_x,
                     const Tensor& weights_h) {
    if (gru.dtype == Dtype::bf16 && cpu_paths().gates_by_onednn) {
        // Either product is rounded to bfloat16, as where gates are convolved.
        return at::mm(rows_of(x), weights_x.t()).to(at::kFloat).add_(at::mm(rows_of(h), weights_h.t()));
    }
    const int64_t rows = x.size(0) * x.size(2) * x.size(3);
    const Tensor products = at::empty({rows, cpu::kColumns}, x.options().dtype(acc_dtype(x.scalar_type())));
    over_threads(rows, 4 * cpu::kColumns * gru.channels, [&](cpu::ThreadRange range) {
        cpu::gru_products(gru, x.const_data_ptr(), h.const_data_ptr(), weights_x.const_data_ptr(),
                          weights_h.const_data_ptr(), products.mutable_data_ptr(), range);
    });
    return products;
}

void check(const Tensor& inputs, const Tensor& state, at::TensorList weights) {
    TORCH_CHECK_VALUE(inputs.dim() == 4 && inputs.sizes() == state.sizes() && inputs.size(2) == inputs.size(3) &&
                          inputs.size(1) >= 1 && inputs.size(2) < int64_t{1} << 15,
                      "conv_gru: inputs and state must both be [R, C, P, P], P below 2^15");
    TORCH_CHECK_VALUE(weights.size() == kWeights, "conv_gru: wants ", int{kWeights}, " weights, got ", weights.size());
    for (int i = 0; i < kNewBias; ++i) {
        TORCH_CHECK_VALUE(weights[i].dim() == 4 && weights[i].size(1) == inputs.size(1) && weights[i].size(2) == 3 &&
                              weights[i].size(3) == 3,
                          "conv_gru: kernels must be [channels or 1, ", inputs.size(1), ", 3, 3]");
    }
    const int64_t gate = weights[kResetX].dim() == 4 ? weights[kResetX].size(0) : 0;
    const std::array<int64_t, kWeights> outputs = {inputs.size(1), inputs.size(1), gate, gate, gate,
                                                   gate,           inputs.size(1), gate, gate};
    for (int i = 0; i < kWeights; ++i) {
        TORCH_CHECK_VALUE(weights[i].dim() == (i < kNewBias ? 4 : 1) && weights[i].size(0) == outputs[i],
                          "conv_gru: weight ", i, " must have ", outputs[i], " channels, got ", weights[i].size(0));
    }
    TORCH_CHECK_VALUE(gate == 1 || gate == inputs.size(1), "conv_gru: gates must have 1 channel or those of the state");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> conv_gru_cpu(const Tensor& inputs, const Tensor& state,
                                                        at::TensorList weights) {
    check(inputs, state, weights);
    const auto guard = no_autocast();
    const bool wide = weights[kResetX].size(0) > 1;
    const at::ScalarType dtype = compute_dtype(inputs, wide);
    const Tensor x = packed(inputs.to(dtype)), h = packed(state.to(dtype));
    const std::vector<Tensor> w = converted(weights, dtype);
    const cpu::Gru gru = gru_of(x, wide);
    const int64_t rows = x.size(0) * x.size(2) * x.size(3), row = gru.channels;

    Tensor reset, update, reset_state;
    if (wide) {
        reset = convolve(x, w[kResetX], w[kResetBias]).add_(convolve(h, w[kResetH])).sigmoid_();
        update = convolve(x, w[kUpdateX], w[kUpdateBias]).add_(convolve(h, w[kUpdateH])).sigmoid_();
        reset_state = reset * h;
    } else {
        const Tensor weights_x = columns_of(w[kResetX], w[kUpdateX]), weights_h = columns_of(w[kResetH], w[kUpdateH]);
        const Tensor products = gate_products(gru, x, h, weights_x, weights_h);
        reset = empty_map(x, {x.size(0), 1, x.size(2), x.size(3)});
        update = at::empty_like(reset);
        reset_state = at::empty_like(h);
        const double reset_bias = w[kResetBias].item<double>(), update_bias = w[kUpdateBias].item<double>();
        over_threads(x.size(0), x.size(2) * x.size(3) * row, [&](cpu::ThreadRange regions) {
            cpu::gru_gates(gru, products.const_data_ptr(), reset_bias, update_bias, h.const_data_ptr(),
                           reset.mutable_data_ptr(), update.mutable_data_ptr(), reset_state.mutable_data_ptr(),
                           regions);
        });
    }
    reset_state = rounded(reset_state, inputs.scalar_type());
    // Two convolutions of 16 bits would round twice before the ReLU, and move it; in float32 two are faster than one.
    const bool two_parts = dtype != at::kBFloat16;
    Tensor candidate, change;
    if (two_parts) {
        candidate = convolve(x, w[kNewX], w[kNewBias]);
        change = convolve(reset_state, w[kNewH]);
    } else {
        candidate = convolve(at::cat({x, reset_state}, 1), at::cat({w[kNewX], w[kNewH]}, 1), w[kNewBias]);
        change = reset_state;  // its memory
    }
    over_threads(rows, row, [&](cpu::ThreadRange range) {
        cpu::gru_change(gru, two_parts, h.const_data_ptr(), update.const_data_ptr(), candidate.mutable_data_ptr(),
                        change.mutable_data_ptr(), range);
    });
    const at::ScalarType out = inputs.scalar_type();
    return {change.to(out), candidate.to(out), reset.to(out), update.to(out)};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> conv_gru_backward_cpu(const Tensor& grad, const Tensor& inputs,
                                                                      const Tensor& state, at::TensorList weights,
                                                                      const Tensor& candidate, const Tensor& reset,
                                                                      const Tensor& update) {
    check(inputs, state, weights);
    TORCH_CHECK_VALUE(grad.sizes() == inputs.sizes() && candidate.sizes() == inputs.sizes() &&
                          reset.sizes() == update.sizes() && reset.dim() == 4 && reset.size(0) == inputs.size(0) &&
                          reset.size(1) == weights[kResetX].size(0) && reset.size(2) == inputs.size(2) &&
                          reset.size(3) == inputs.size(3),
                      "conv_gru_backward: wants the shapes that conv_gru gives");
    const auto guard = no_autocast();
    const bool wide = weights[kResetX].size(0) > 1;
    const at::ScalarType dtype = compute_dtype(inputs, wide);
    const Tensor g = packed(grad.to(dtype)), x = packed(inputs.to(dtype)), h = packed(state.to(dtype)),
                 n = packed(candidate.to(dtype)), r = packed(reset.to(dtype)), u = packed(update.to(dtype));
    const std::vector<Tensor> w = converted(weights, dtype);
    const cpu::Gru gru = gru_of(x, wide);
    const int64_t rows = x.size(0) * x.size(2) * x.size(3), row = gru.channels;
    const auto accumulated = x.options().dtype(acc_dtype(dtype));

    Tensor pre_candidate = at::empty_like(h), reset_state = at::empty_like(h);
    const Tensor pre_update = at::empty(u.sizes(), accumulated.memory_format(at::MemoryFormat::ChannelsLast));
    const cpu::GruGradient gradient = {g.const_data_ptr(),
                                       h.const_data_ptr(),
                                       n.const_data_ptr(),
                                       r.const_data_ptr(),
                                       u.const_data_ptr(),
                                       pre_candidate.mutable_data_ptr(),
                                       reset_state.mutable_data_ptr(),
                                       pre_update.mutable_data_ptr()};
    over_threads(rows, row, [&](cpu::ThreadRange range) { cpu::gru_backward(gru, gradient, range); });

    std::vector<Tensor> d(kWeights);
    reset_state = rounded(reset_state, inputs.scalar_type());
    const std::vector<Tensor> d_new = kernels_gradients(pre_candidate, {x, reset_state}, w[kNewX]);
    d[kNewX] = d_new[0];
    d[kNewH] = d_new[1];
    reset_state.reset();
    d[kNewBias] = rows_of(pre_candidate).sum(0);
    Tensor d_inputs = patches_gradient(pre_candidate, x, w[kNewX]),
           d_state = patches_gradient(pre_candidate, h, w[kNewH]);
    if (wide) {
        const Tensor pre_reset = at::sigmoid_backward(d_state * h, r);
        d_state.mul_(r).sub_(g * u);
        const auto gate = [&](const Tensor& pre, int kernel_x, int kernel_h, int bias) {
            const std::vector<Tensor> both = kernels_gradients(pre, {x, h}, w[kernel_x]);
            d[kernel_x] = both[0];
            d[kernel_h] = both[1];
            d[bias] = rows_of(pre).sum(0);
            d_inputs.add_(patches_gradient(pre, x, w[kernel_x]));
            d_state.add_(patches_gradient(pre, h, w[kernel_h]));
        };
        gate(pre_reset, kResetX, kResetH, kResetBias);
        gate(pre_update, kUpdateX, kUpdateH, kUpdateBias);
    } else {
        const Tensor weights_x = columns_of(w[kResetX], w[kUpdateX]), weights_h = columns_of(w[kResetH], w[kUpdateH]);
        const Tensor pre_reset = at::empty_like(pre_update), columns = at::empty({rows, cpu::kColumns}, x.options());
        over_threads(x.size(0), x.size(2) * x.size(3) * row * cpu::kColumns, [&](cpu::ThreadRange regions) {
            cpu::gru_gates_backward(gru, gradient, weights_x.const_data_ptr(), weights_h.const_data_ptr(),
                                    d_inputs.mutable_data_ptr(), d_state.mutable_data_ptr(),
                                    pre_reset.mutable_data_ptr(), columns.mutable_data_ptr(), regions);
        });
        const Tensor d_x = product_of(columns, x), d_h = product_of(columns, h);
        d[kResetX] = kernel_of(d_x, 0);
        d[kUpdateX] = kernel_of(d_x, 1);
        d[kResetH] = kernel_of(d_h, 0);
        d[kUpdateH] = kernel_of(d_h, 1);
        d[kResetBias] = pre_reset.sum(at::kDouble).view(1);
        d[kUpdateBias] = pre_update.sum(at::kDouble).view(1);
    }
    for (int i = 0; i < kWeights; ++i) {
        const Tensor out = at::empty_like(weights[i]);
        // As the fake promises, in the layout of the weight.
        d[i] = d[i].strides() == out.strides() ? d[i].to(out.scalar_type()) : out.copy_(d[i]);
    }
    return {d_inputs.to(inputs.scalar_type()), d_state.to(state.scalar_type()), d};
}

}  // namespace

TORCH_LIBRARY_IMPL(irnet, CPU, m) {
    m.impl("conv_gru.cpp", conv_gru_cpu);
    m.impl("conv_gru_backward.cpp", conv_gru_backward_cpu);
}

}  // namespace irnet
