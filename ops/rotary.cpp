// Rotary phases: frequencies, tables, then kernels over heads.
#include "ops/cpu/rotary.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "ops/cuda/rotary.h"
#include "ops/norm_input.h"
#include "src/core/cuda_build.h"
#include "weft/ops/sequence.h"

namespace weft::ops {

namespace {

using cpu::Isa;

int64_t rotated_channels(int64_t head_width, const RotaryOptions& o) {
  double exact = o.fraction * static_cast<double>(head_width);
  int64_t rotated = std::llround(exact);
  WEFT_CHECK(head_width > 0 && rotated > 0 && rotated <= head_width && rotated % 2 == 0 &&
                 std::abs(exact - static_cast<double>(rotated)) < 1e-6,
             str("rotary: fraction ", o.fraction, " of a head of ", head_width, " channels is ", exact, " channels"),
             "choose a fraction that gives an even number of channels, from 2 to the whole head");
  return rotated;
}

void check_options(const RotaryOptions& o) {
  WEFT_CHECK(o.base > 0, str("rotary: base is ", o.base), "base must be positive");
  int scalings = o.linear.has_value() + o.llama3.has_value() + o.yarn.has_value();
  WEFT_CHECK(scalings <= 1, str("rotary: ", scalings, " scalings are set"),
             "set at most one of linear, llama3 and yarn");
  double factor = o.linear ? o.linear->factor : o.llama3 ? o.llama3->factor : o.yarn ? o.yarn->factor : 1;
  WEFT_CHECK(factor > 0, str("rotary: the scaling's factor is ", factor), "the factor must be positive");
  if (o.llama3)
    WEFT_CHECK(o.llama3->original_context > 0 && o.llama3->low_freq_factor > 0 &&
                   o.llama3->high_freq_factor > o.llama3->low_freq_factor,
               str("rotary: llama3 has original_context ", o.llama3->original_context, ", low_freq_factor ",
                   o.llama3->low_freq_factor, ", high_freq_factor ", o.llama3->high_freq_factor),
               "they must be positive, and high_freq_factor above low_freq_factor");
  if (o.yarn)
    WEFT_CHECK(
        o.yarn->original_context > 0 && o.yarn->beta_slow > 0 && o.yarn->beta_fast > o.yarn->beta_slow &&
            o.yarn->attention_factor >= 0 && o.base != 1,
        str("rotary: yarn has original_context ", o.yarn->original_context, ", beta_fast ", o.yarn->beta_fast,
            ", beta_slow ", o.yarn->beta_slow, ", attention_factor ", o.yarn->attention_factor, ", base ", o.base),
        "original_context and beta_slow must be positive, beta_fast above beta_slow, attention_factor not negative");
}

// Wavelengths beyond original / low are stretched by the factor, below original / high kept, and mixed in between.
double llama3_frequency(double f, const RotaryOptions::Llama3& o) {
  double turns = static_cast<double>(o.original_context) * f / (2 * std::numbers::pi);  // over the original context
  double kept = std::clamp((turns - o.low_freq_factor) / (o.high_freq_factor - o.low_freq_factor), 0.0, 1.0);
  return (1 - kept) * f / o.factor + kept * f;
}

// YaRN's "NTK by parts" (Peng et al., 2309.00071) as checkpoints use it: the share of a pair that is interpolated rises
// linearly with the pair's index, between the indices that turn beta_fast and beta_slow times over the original
// context.
double yarn_interpolated(int64_t pair, int64_t rotated, double base, const RotaryOptions::Yarn& o) {
  auto index_of = [&](double turns) {
    return static_cast<double>(rotated) *
           std::log(static_cast<double>(o.original_context) / (turns * 2 * std::numbers::pi)) / (2 * std::log(base));
  };
  double low = std::max(std::floor(index_of(o.beta_fast)), 0.0);
  double high = std::min(std::ceil(index_of(o.beta_slow)), static_cast<double>(rotated - 1));
  if (high == low) high += 0.001;  // a step instead of a division by zero
  return std::clamp((static_cast<double>(pair) - low) / (high - low), 0.0, 1.0);
}

double attention_factor(const RotaryOptions& o) {
  if (!o.yarn) return 1;
  if (o.yarn->attention_factor > 0) return o.yarn->attention_factor;
  return o.yarn->factor > 1 ? 0.1 * std::log(o.yarn->factor) + 1 : 1;
}

template <class P>
void fill_table(const Tensor& positions_BT, const std::vector<double>& frequencies, double amplitude,
                RotaryTable& table) {
  const int64_t batch = positions_BT.size(0), tokens = positions_BT.size(1),
                pairs = static_cast<int64_t>(frequencies.size());
  const P* positions = positions_BT.data<P>();
  float *cos = table.cos.mutable_data<float>(), *sin = table.sin.mutable_data<float>();
  for (int64_t b = 0; b < batch; ++b, positions += tokens, cos += tokens * pairs, sin += tokens * pairs) {
    // Rows of a batch often have the same positions: their angles are copied from the row before.
    if (b > 0 && std::equal(positions, positions + tokens, positions - tokens)) {
      std::copy_n(cos - tokens * pairs, tokens * pairs, cos);
      std::copy_n(sin - tokens * pairs, tokens * pairs, sin);
      continue;
    }
    parallel_for(tokens, 1 + 512 / pairs, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        for (int64_t m = 0; m < pairs; ++m) {
          double angle = static_cast<double>(positions[t]) * frequencies[static_cast<size_t>(m)];
          cos[t * pairs + m] = static_cast<float>(amplitude * std::cos(angle));
          sin[t * pairs + m] = static_cast<float>(amplitude * std::sin(angle));
        }
    });
  }
}

void check_table(const Tensor& x, const RotaryTable& table, std::string_view op) {
  const Tensor &c = table.cos, &s = table.sin;
  WEFT_CHECK(c.defined() && s.defined() && c.num_dims() == 3 && c.shape() == s.shape() && c.dtype() == kF32 &&
                 s.dtype() == kF32 && c.is_contiguous() && s.is_contiguous() && c.size(0) == x.size(0) &&
                 c.size(1) == x.size(1) && 2 * c.size(2) <= x.size(3) && c.device() == x.device() &&
                 s.device() == x.device(),
             str(op, ": x is ", x, ", the table's cos is ", c, " and sin ", s),
             "make the table with rotary_table() from positions [B, T] of these tokens and this head width");
}

Tensor rotate(const Tensor& x_BTHK, const RotaryTable& table, double direction, std::string_view op) {
  check_floating_rows(x_BTHK, "x", op);
  WEFT_CHECK(x_BTHK.num_dims() == 4, str(op, ": x is ", x_BTHK), "pass heads [B, T, H, K]");
  check_table(x_BTHK, table, op);
  RowsOf input(x_BTHK);
  Tensor y = Tensor::empty(x_BTHK.shape(), x_BTHK.dtype(), x_BTHK.device());
  with_type<float, BFloat16, double>(x_BTHK.dtype(), op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    cpu::RotaryArgs<T> args{.x_rows = input.rows,
                            .heads = x_BTHK.size(2),
                            .rotated = 2 * table.cos.size(2),
                            .x = input.tensor.data<T>(),
                            .cos = table.cos.data<float>(),
                            .sin = table.sin.data<float>(),
                            .direction = direction,
                            .y = y.mutable_data<T>()};
    if constexpr (kCuda) {
      if (x_BTHK.is_cuda())
        return table.interleaved ? cuda::RotaryKernels<T>::interleaved(args, x_BTHK.device())
                                 : cuda::RotaryKernels<T>::half(args, x_BTHK.device());
    }
    for_rows(input.rows, [&]<Isa I>(int64_t begin, int64_t end) {
      if (table.interleaved) cpu::RotaryKernels<I, T>::interleaved(args, begin, end);
      else cpu::RotaryKernels<I, T>::half(args, begin, end);
    });
  });
  return y;
}

}  // namespace

std::vector<double> rotary_frequencies(int64_t head_width, const RotaryOptions& options) {
  check_options(options);
  const int64_t rotated = rotated_channels(head_width, options);
  std::vector<double> frequencies;
  for (int64_t pair = 0; pair < rotated / 2; ++pair) {
    double f = std::pow(options.base, -2.0 * static_cast<double>(pair) / static_cast<double>(rotated));
    if (options.linear) f /= options.linear->factor;
    if (options.llama3) f = llama3_frequency(f, *options.llama3);
    if (options.yarn) {
      double share = yarn_interpolated(pair, rotated, options.base, *options.yarn);
      f = share * f / options.yarn->factor + (1 - share) * f;
    }
    frequencies.push_back(f);
  }
  return frequencies;
}

RotaryTable rotary_table(const Tensor& positions_BT, int64_t head_width, const RotaryOptions& options) {
  WEFT_CHECK(positions_BT.defined() && positions_BT.num_dims() == 2 &&
                 (positions_BT.dtype() == kI32 || positions_BT.dtype() == kI64),
             str("rotary_table: positions are ", positions_BT), "pass positions [B, T] as i32 or i64");
  std::vector<double> frequencies = rotary_frequencies(head_width, options);
  Shape shape{positions_BT.size(0), positions_BT.size(1), static_cast<int64_t>(frequencies.size())};
  const Device device = positions_BT.device();
  RotaryTable table{Tensor::empty(shape, kF32, device), Tensor::empty(shape, kF32, device), options.interleaved};
  Tensor positions = contiguous(positions_BT);
  if constexpr (kCuda) {
    if (device.is_cuda()) {
      Tensor on_device = Tensor::empty({shape[2]}, kF64, device);
      copy_(on_device, Tensor::from(std::span<const double>(frequencies), {shape[2]}));
      cuda::rotary_table(table.cos, table.sin, positions, on_device, attention_factor(options));
      return table;
    }
  }
  with_type<int32_t, int64_t>(positions.dtype(), "rotary_table", [&](auto tag) {
    fill_table<typename decltype(tag)::type>(positions, frequencies, attention_factor(options), table);
  });
  return table;
}

Tensor rotary(const Tensor& x_BTHK, const RotaryTable& table) { return rotate(x_BTHK, table, 1, "rotary"); }

Tensor rotary_backward(const Tensor& dy_BTHK, const RotaryTable& table) {
  return rotate(dy_BTHK, table, -1, "rotary_backward");
}

}  // namespace weft::ops
