// The checks that compare two ways to the same numbers.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>

#include "trainers/conformance/subject.h"
#include "weft/core/error.h"
#include "weft/core/stream.h"
#include "weft/io/safetensors.h"
#include "weft/nn/layers.h"
#include "weft/ops/elementwise.h"

namespace weft::conformance {

namespace {

constexpr int64_t kBatch = 2, kTokens = 11;

std::vector<io::NamedTensor> state_of(const Mixer& mixer) {
  std::vector<io::NamedTensor> state;
  for (const NamedParam& p : mixer.params()) state.push_back({p.name, p.param->value()});
  for (const NamedBuffer& b : mixer.buffers()) state.push_back({b.name, b.buffer->value()});
  return state;
}

std::filesystem::path temporary_file() {
  static std::atomic<int> count = 0;
  return std::filesystem::temp_directory_path() / fmt::format("weft-check-{}-{}.safetensors", getpid(), count++);
}

struct DeviceRun {
  std::vector<double> out, dx;
};
DeviceRun run_on(const Subject& subject, Device device) {
  struct Restore {
    Device outer = default_device();
    ~Restore() { set_default_device(outer); }
  } restore;
  set_default_device(device);
  std::unique_ptr<Mixer> mixer = subject.make(kF32);
  Var x = variable(to(normal_input({kBatch, kTokens, subject.args().dim}, kF32), device).value());
  Var y = subject.run(*mixer, x, plain_tokens(kBatch, kTokens), {.is_training = true, .rng = Rng(11)});
  backward(sum_all(square(y)));
  return {numbers_of(y.value()), numbers_of(x.grad())};
}

}  // namespace

TokenData packed_tokens(int64_t batch, int64_t num_tokens) {
  TokenData data = plain_tokens(batch, num_tokens);
  Tensor documents = Tensor::empty({batch, num_tokens}, kI32, Device::cpu());
  Tensor positions = Tensor::empty({batch, num_tokens}, kI32, Device::cpu());
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t t = 0; t < num_tokens; ++t) {
      documents.mutable_data<int32_t>()[b * num_tokens + t] = t < 4 ? 0 : 1;
      positions.mutable_data<int32_t>()[b * num_tokens + t] = static_cast<int32_t>(t < 4 ? t : t - 4);
    }
  data.documents = to(documents, default_device()).value();
  data.document_positions = to(positions, default_device()).value();
  return data;
}

GradientCheck check_gradients_of(const MixerRow& row, const InputSize& size, int64_t max_elements) {
  Subject subject(row, size.dim);
  std::unique_ptr<Mixer> mixer = subject.make(kF64);
  std::vector<Var*> variables;
  GradientCheckOptions how{.max_elements = max_elements, .names = {"x"}};
  for (const NamedParam& p : mixer->params()) {
    variables.push_back(&p.param->var());
    how.names.push_back(p.name);
  }
  Tensor x = normal_input({size.batch, size.tokens, size.dim}, kF64);
  auto f = [&](std::span<const Var> in) {
    return subject.run(*mixer, in[0], plain_tokens(size.batch, size.tokens), {.is_training = true, .rng = Rng(11)});
  };
  return weft::check_gradients(f, {&x, 1}, variables, how);
}

Outcome check_gradients(const Subject& subject) {
  if (!subject.row().lacks.gradient.empty()) return {Verdict::unsupported, std::string(subject.row().lacks.gradient)};
  GradientCheck result = check_gradients_of(subject.row(), {2, 7, subject.args().dim});
  std::string figure = fmt::format("{} elements, worst {:.2g} of the bound", result.num_checked, result.worst_error);
  return {result.passed ? Verdict::passed : Verdict::failed, result.passed ? figure : figure + ": " + result.report};
}

// Another future, the same past: bit for bit the same outputs.
Outcome check_causality(const Subject& subject) {
  std::unique_ptr<Mixer> mixer = subject.make(kF32);
  constexpr int64_t kPast = 6;
  Tensor x = normal_input({kBatch, kTokens, subject.args().dim}, kF32);
  const Var parts[] = {x.slice(1, 0, kPast), normal_input(x.shape(), kF32, 99).slice(1, kPast, kTokens)};
  Tensor other = concatenate(parts, 1).value();
  TokenData data = plain_tokens(kBatch, kTokens);
  std::vector<double> a = numbers_of(subject.run(*mixer, x, data).value().slice(1, 0, kPast)),
                      b = numbers_of(subject.run(*mixer, other, data).value().slice(1, 0, kPast));
  double difference = largest_difference(a, b);
  if (!subject.row().lacks.exact_causality.empty()) return within(difference, 1e-5, "largest change");
  return {difference == 0 ? Verdict::passed : Verdict::failed,
          difference == 0 ? "the same bits" : fmt::format("the future changes the past by {:.2g}", difference)};
}

Outcome check_documents(const Subject& subject) {
  if (!subject.row().lacks.documents.empty()) return {Verdict::unsupported, std::string(subject.row().lacks.documents)};
  std::unique_ptr<Mixer> mixer = subject.make(kF64);
  Tensor x = normal_input({kBatch, kTokens, subject.args().dim}, kF64);
  std::vector<double> packed = numbers_of(subject.run(*mixer, x, packed_tokens(kBatch, kTokens)).value());
  const Var parts[] = {subject.run(*mixer, x.slice(1, 0, 4), plain_tokens(kBatch, 4)),
                       subject.run(*mixer, x.slice(1, 4, kTokens), plain_tokens(kBatch, kTokens - 4))};
  return within(largest_difference(packed, numbers_of(concatenate(parts, 1).value())), 1e-10,
                "largest difference to separate documents");
}

Outcome check_bf16(const Subject& subject) {
  std::unique_ptr<Mixer> mixer = subject.make(kF32);
  Tensor x = normal_input({kBatch, kTokens, subject.args().dim}, kBF16);
  TokenData data = plain_tokens(kBatch, kTokens);
  std::vector<double> f32 = numbers_of(subject.run(*mixer, cast(Var(x), kF32), data).value());
  mixer->set_compute(kBF16);
  Var y = subject.run(*mixer, variable(x), data, {.is_training = true, .rng = Rng(11)});
  WEFT_CHECK(y.dtype() == kBF16, str("the output is ", y.dtype(), ", must be bf16 as the input"),
             "cast to the dtype of x before the output projection");
  backward(sum_all(square(cast(y, kF32))));
  for (const NamedParam& p : mixer->params())
    WEFT_CHECK(!p.param->grad().defined() || p.param->grad().dtype() == kF32,
               str("the gradient of ", p.name, " is ", p.param->grad()), "gradients are f32");
  Var again = subject.run(*mixer, x, data);
  return within(relative_difference(numbers_of(again.value()), f32), subject.row().bf16_bound,
                "relative difference to f32");
}

namespace {

// One long row, forward and backward.
struct LongRow {
  Tensor y, dx;
};

constexpr int64_t kLong = 512, kQuarter = kLong / 4;
constexpr double kUnit = 1.0 / 256;  // in the last place of a bf16 number from 1 to 2

LongRow long_row(const Subject& subject, Mixer& mixer, const Tensor& x, DType dtype) {
  Var in = variable(cast(Var(x), dtype).value());
  Var y = subject.run(mixer, in, plain_tokens(1, kLong), {.is_training = true, .rng = Rng(11)});
  backward(sum_all(cast(y, kF32) * Var(normal_input(y.shape(), kF32, 5))));
  return {y.value(), in.grad()};
}

// Relative difference of a from b, token by token, [1, T, D]: the median. A rounding may choose another expert or switch a ReLU for a few
// tokens; what is wrong with a sum is wrong for all that come after.
double median_difference(const Tensor& a, const Tensor& b) {
  std::vector<double> of_tokens;
  for (int64_t t = 0; t < a.size(1); ++t)
    of_tokens.push_back(relative_difference(numbers_of(a.slice(1, t, t + 1)), numbers_of(b.slice(1, t, t + 1))));
  auto middle = of_tokens.begin() + a.size(1) / 2;
  std::nth_element(of_tokens.begin(), middle, of_tokens.end());
  return *middle;
}

// Of y and dx in each quarter of the row by itself, because outputs get smaller along a row of averages.
std::vector<double> differences(const LongRow& a, const LongRow& b) {
  std::vector<double> out;
  for (auto part : {&LongRow::y, &LongRow::dx})
    for (int64_t begin = 0; begin < kLong; begin += kQuarter)
      out.push_back(
          median_difference((a.*part).slice(1, begin, begin + kQuarter), (b.*part).slice(1, begin, begin + kQuarter)));
  return out;
}

// Every number times 1 + noise of up to one unit in the last place of bf16.
Tensor moved(const Tensor& x, Rng rng) { return ops::mul(x, ops::add_scalar(uniform_init(x.shape(), rng, kUnit), 1)); }

}  // namespace

// On one long row: what is summed or counted over the tokens in bf16 goes wrong only there (bf16 holds whole numbers to 256). Some mixers
// move far when their input moves a little, such as one that looks up among 512 keys several times. So the measure is how far f32 itself
// moves when input and parameters move by a unit in the last place of bf16: a bf16 computation may differ by three times that.
Outcome check_long_bf16(const Subject& short_subject) {
  constexpr uint64_t kMoves = 3;
  Subject subject(short_subject.row(), short_subject.args().dim, kLong);
  std::unique_ptr<Mixer> mixer = subject.make(kF32);
  Tensor x = normal_input({1, kLong, subject.args().dim}, kBF16), wide = cast(Var(x), kF32).value();
  const LongRow f32 = long_row(subject, *mixer, wide, kF32);
  std::vector<double> of_moves(8);
  for (uint64_t i = 0; i < kMoves; ++i) {
    std::unique_ptr<Mixer> other = subject.make(kF32);
    Rng rng = Rng(13)[i];
    for (const NamedParam& p : other->params()) p.param->set_value(moved(p.param->value(), rng[p.name]));
    std::vector<double> d = differences(long_row(subject, *other, moved(wide, rng["x"]), kF32), f32);
    for (size_t q = 0; q < d.size(); ++q) of_moves[q] += std::max(d[q], kUnit) / kMoves;
  }
  mixer->clear_grads();
  mixer->set_compute(kBF16);
  std::vector<double> of_bf16 = differences(long_row(subject, *mixer, x, kBF16), f32);
  double worst = 0;
  for (size_t q = 0; q < of_bf16.size(); ++q) worst = std::max(worst, of_bf16[q] / of_moves[q]);
  Outcome outcome = within(
      worst, 3, "difference to f32 over what a unit in the last place does to f32, in the worst quarter of 512 tokens");
  outcome.reason +=
      fmt::format("; that moves f32 by up to {:.2g}", *std::max_element(of_moves.begin(), of_moves.end()));
  return outcome;
}

// What pruning and head importance need: the outputs of heads pass Tokens::heads(), and what comes back is what goes on.
Outcome check_heads(const Subject& subject) {
  std::unique_ptr<Mixer> mixer = subject.make(kF32);
  Tensor x = normal_input({kBatch, kTokens, subject.args().dim}, kF32);
  TokenData data = plain_tokens(kBatch, kTokens);
  int64_t num_heads = 0;
  bool has_shape = true;
  auto with_factor = [&](double factor) {
    Probe probe{.heads = [&](std::string_view, const Var& y) {
      has_shape = has_shape && y.value().num_dims() == 4 && y.size(0) == kBatch && y.size(1) == kTokens;
      num_heads += has_shape ? y.size(2) : 1;
      return y * factor;
    }};
    return numbers_of(subject.run(*mixer, x, data, {.probe = &probe}).value());
  };
  std::vector<double> as_it_is = with_factor(1);
  const int64_t seen = num_heads;
  std::string_view lacks = subject.row().lacks.heads;
  if (!lacks.empty() && seen == 0) return {Verdict::unsupported, std::string(lacks)};
  if (!lacks.empty()) return {Verdict::failed, fmt::format("is said to have none ({}), but shows {}", lacks, seen)};
  if (seen == 0)
    return {Verdict::failed,
            "the outputs of its heads do not pass Tokens::heads() before they are joined; a mixer without heads says "
            "so in its row's "
            "lacks.heads"};
  if (!has_shape) return {Verdict::failed, "Tokens::heads() was not given [batch, tokens, heads, width]"};
  if (with_factor(0) == as_it_is) return {Verdict::failed, "what Tokens::heads() returns is not used"};
  return {Verdict::passed, fmt::format("{} heads can be masked", seen)};
}

Outcome check_devices(const Subject& subject) {
  if (num_cuda_devices() == 0) return {Verdict::unsupported, "no GPU here"};
  if (!subject.row().lacks.devices.empty()) return {Verdict::unsupported, std::string(subject.row().lacks.devices)};
  DeviceRun cpu = run_on(subject, Device::cpu()), gpu = run_on(subject, Device::cuda());
  double worst = std::max(relative_difference(gpu.out, cpu.out), relative_difference(gpu.dx, cpu.dx));
  return within(worst, 1e-4, "relative difference of output and gradient to the CPU's");
}

Outcome check_checkpoint(const Subject& subject) {
  std::unique_ptr<Mixer> saved = subject.make(kF32, 7), loaded = subject.make(kF32, 8);
  std::filesystem::path file = temporary_file();
  io::write_safetensors(file.string(), state_of(*saved));
  io::load_into(io::SafetensorsFile::open(file.string()), state_of(*loaded), io::LoadRule::exact);
  std::filesystem::remove(file);
  Tensor x = normal_input({kBatch, kTokens, subject.args().dim}, kF32);
  TokenData data = plain_tokens(kBatch, kTokens);
  std::vector<double> a = numbers_of(subject.run(*saved, x, data).value()),
                      b = numbers_of(subject.run(*loaded, x, data).value());
  bool is_same = a == b;
  return {is_same ? Verdict::passed : Verdict::failed,
          is_same ? fmt::format("{} tensors, the same bits", state_of(*saved).size()) : "the loaded mixer differs"};
}

Outcome check_reference(const Subject& subject, const MixerReference* reference) {
  if (!reference) return {Verdict::unsupported, "no plain-loop reference was given for it"};
  std::unique_ptr<Mixer> mixer = subject.make(kF64);
  Parameters parameters;
  for (io::NamedTensor& t : state_of(*mixer)) parameters[t.name] = cast(Var(t.tensor.cpu()), kF64).value();
  Tensor x = normal_input({kBatch, kTokens, subject.args().dim}, kF64);
  double worst = 0;
  for (const TokenData& data : {plain_tokens(kBatch, kTokens), packed_tokens(kBatch, kTokens)}) {
    if (data.documents.defined() && !subject.row().lacks.documents.empty()) continue;
    std::vector<double> expected = (*reference)(subject.args(), parameters, x, data);
    worst = std::max(worst, largest_difference(numbers_of(subject.run(*mixer, x, data).value()), expected));
  }
  return within(worst, 1e-10, "largest difference to plain loops");
}

}  // namespace weft::conformance
