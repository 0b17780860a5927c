// Which rows of channels are combined around the matrix products of winograd.h. The sums are made by weighted_sum.

#include "weighted_sum.h"
#include "winograd.h"

namespace irnet::cpu {

namespace {

// By which combination of the three taps a part multiplies.
constexpr float kTapsOf[kParts][3] = {{1, 0, 0}, {0.5f, 0.5f, 0.5f}, {0.5f, -0.5f, 0.5f}, {0, 0, 1}, {0, 1, 0}};

WeightedSum<float> sum_of(const Winograd& winograd) { return weighted_sum<float>(Dtype::f32, winograd.capability); }

Output<float> to(float* row, const float* base) { return {row, base, 1.0f, nullptr, false, false}; }

}  // namespace

Winograd::Axis::Axis(int size) : size(size) {
    const auto cell = [size](int at, int sign) { return Signed{at, at >= 0 && at < size ? sign : 0}; };
    for (int at = 0; at + 1 < size; at += 2) {
        products[0].push_back({{cell(at - 1, 1), cell(at + 1, -1)}, {cell(at, 1), {0, 0}}});
        products[1].push_back({{cell(at, 1), cell(at + 1, 1)}, {cell(at, 1), cell(at + 1, 1)}});
        products[2].push_back({{cell(at + 1, 1), cell(at, -1)}, {cell(at, 1), cell(at + 1, -1)}});
        products[3].push_back({{cell(at, 1), cell(at + 2, -1)}, {cell(at + 1, -1), {0, 0}}});
    }
    if (size % 2) {
        products[0].push_back({{cell(size - 2, 1), {0, 0}}, {cell(size - 1, 1), {0, 0}}});
        products[4].push_back({{cell(size - 1, 1), {0, 0}}, {cell(size - 1, 1), {0, 0}}});
    }
    for (int part = 0; part < kParts; ++part) {
        sources[part].resize(size, {0, 0});
        for (int product = 0; product < count(part); ++product) {
            for (const Signed& output : products[part][product].outputs) {
                if (output.sign != 0) sources[part][output.at] = {product, output.sign};
            }
        }
    }
}

void winograd_rows(const Winograd& winograd, int i, int j, bool as_outputs, int64_t channels, const float* maps,
                   float* rows, ThreadRange lines) {
    const WeightedSum<float> sum = sum_of(winograd);
    const int64_t height = winograd.down.size, width = winograd.across.size;
    float* row = rows + lines.begin * winograd.across.count(j) * channels;
    for (int64_t line = lines.begin; line < lines.end; ++line) {
        const float* map = maps + line / winograd.down.count(i) * height * width * channels;
        const auto& down = winograd.down.products[i][line % winograd.down.count(i)];
        for (const auto& across : winograd.across.products[j]) {
            Term<float> terms[4];
            int count = 0;
            for (const auto& y : as_outputs ? down.outputs : down.inputs) {
                for (const auto& x : as_outputs ? across.outputs : across.inputs) {
                    if (y.sign * x.sign == 0) continue;
                    terms[count++] = {map + (y.at * width + x.at) * channels, static_cast<float>(y.sign * x.sign)};
                }
            }
            sum(terms, count, channels, to(row, nullptr));
            row += channels;
        }
    }
}

void winograd_kernels(const Winograd& winograd, int i, int j, bool rotated, int64_t channels, const float* kernels,
                      float* combination, ThreadRange outputs) {
    const WeightedSum<float> sum = sum_of(winograd);
    for (int64_t output = outputs.begin; output < outputs.end; ++output) {
        Term<float> terms[9];
        int count = 0;
        for (int tap = 0; tap < 9; ++tap) {
            const float weight = kTapsOf[i][tap / 3] * kTapsOf[j][tap % 3];
            if (weight == 0) continue;
            terms[count++] = {kernels + (9 * output + (rotated ? 8 - tap : tap)) * channels, weight};
        }
        sum(terms, count, channels, to(combination + output * channels, nullptr));
    }
}

void winograd_outputs(const Winograd& winograd, int i, int64_t channels, const float* const* products,
                      const float* bias, float* maps, ThreadRange lines) {
    const WeightedSum<float> sum = sum_of(winograd);
    const int64_t height = winograd.down.size, width = winograd.across.size;
    for (int64_t line = lines.begin; line < lines.end; ++line) {
        const auto& down = winograd.down.sources[i][line % height];
        if (down.sign == 0 && i > 0) continue;
        const int64_t first = line / height * winograd.down.count(i) + down.at;
        for (int64_t x = 0; x < width; ++x) {
            float* row = maps + (line * width + x) * channels;
            Term<float> terms[kParts];
            int count = 0;
            for (int j = 0; j < kParts; ++j) {
                const auto& across = winograd.across.sources[j][x];
                if (down.sign * across.sign == 0) continue;
                terms[count++] = {products[j] + (first * winograd.across.count(j) + across.at) * channels,
                                  static_cast<float>(down.sign * across.sign)};
            }
            sum(terms, count, channels, to(row, i == 0 ? bias : row));
        }
    }
}

void winograd_kernels_gradient(const Winograd& winograd, int i, int64_t channels, const float* const* combinations,
                               float* kernels, ThreadRange outputs) {
    const WeightedSum<float> sum = sum_of(winograd);
    for (int64_t output = outputs.begin; output < outputs.end; ++output) {
        for (int tap = 0; tap < 9; ++tap) {
            float* row = kernels + (9 * output + tap) * channels;
            Term<float> terms[kParts];
            int count = 0;
            for (int j = 0; j < kParts; ++j) {
                const float weight = kTapsOf[i][tap / 3] * kTapsOf[j][tap % 3];
                if (weight != 0 && winograd.rows(i, j) > 0) {
                    terms[count++] = {combinations[j] + output * channels, weight};
                }
            }
            if (i == 0 || count > 0) sum(terms, count, channels, to(row, i == 0 ? nullptr : row));
        }
    }
}

}  // namespace irnet::cpu
