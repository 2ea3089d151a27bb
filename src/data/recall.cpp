// Recall tasks as sources of samples.
#include "weft/data/recall.h"

#include <algorithm>

#include "src/data/recall_rows.h"
#include "weft/core/error.h"

namespace weft::data {

namespace {

constexpr uint64_t kTestShare = 16;  // one content of so many belongs to the tests
constexpr int64_t kAttempts = 65536;

uint64_t hash_of(const std::vector<int32_t>& content) {
  Rng hash = Rng(0)["recall content"];
  for (int32_t id : content) hash = hash[static_cast<uint64_t>(id)];
  return hash.key();
}

Split split_of(const recall::RecallRow& row) {
  return hash_of(row.content) % kTestShare == 0 ? Split::test : Split::train;
}

// What is drawn is drawn again until its content belongs to the split.
recall::RecallRow draw_of(const RecallOptions& options, int64_t context, Split split, int64_t index, uint64_t seed) {
  const Rng rng = split == Split::test ? Rng(0)["recall test"] : Rng(seed)["recall training"];
  for (int64_t attempt = 0; attempt < kAttempts; ++attempt) {
    Rng own = rng[static_cast<uint64_t>(index)][static_cast<uint64_t>(attempt)];
    recall::RecallRow row = std::visit([&](const auto& o) { return recall::draw(o, context, index, own); }, options);
    if (split_of(row) == split) return row;
  }
  fail(str(recall_name(options), ": none of ", kAttempts, " rows belongs to the ",
           split == Split::test ? "tests" : "training"),
       "make the task larger: so few rows are different that they cannot be divided");
}

// The number that makes a task harder; null if it has none.
template <class T>
int64_t* size_in(T& options) {
  if constexpr (std::is_same_v<T, MqarOptions>) return &options.pairs;
  else if constexpr (std::is_same_v<T, CopyOptions>) return &options.items;
  else if constexpr (std::is_same_v<T, NeedleOptions>) return &options.needles;
  else return nullptr;
}

bool fits(const RecallOptions& options, int64_t context) {
  try {
    std::visit([&](const auto& o) { recall::check(o, context); }, options);
    return true;
  } catch (const Error&) { return false; }
}

struct Name {
  const char* operator()(const MqarOptions&) const { return "mqar"; }
  const char* operator()(const CopyOptions&) const { return "copy"; }
  const char* operator()(const InductionOptions&) const { return "induction"; }
  const char* operator()(const NeedleOptions&) const { return "needle"; }
  const char* operator()(const StateOptions&) const { return "state"; }
};

struct Vocab {
  int64_t operator()(const MqarOptions& o) const { return o.vocab; }
  int64_t operator()(const CopyOptions& o) const { return o.symbols + 2; }
  int64_t operator()(const InductionOptions& o) const { return o.symbols + 1; }
  int64_t operator()(const NeedleOptions& o) const { return o.vocab; }
  int64_t operator()(const StateOptions& o) const { return recall::num_elements(o); }
};

}  // namespace

std::string recall_name(const RecallOptions& options) { return std::visit(Name(), options); }
std::vector<RecallOptions> recall_tasks() {
  return {MqarOptions(), CopyOptions(), InductionOptions(), NeedleOptions(), StateOptions()};
}

RecallTask::RecallTask(const RecallOptions& options, int64_t context, uint64_t seed)
    : options_(options), context_(context), seed_(seed) {
  constexpr int64_t kLongest = (int64_t{1} << 31) - 1;
  WEFT_CHECK(context <= kLongest, str(recall_name(options), ": a row of ", context, " tokens"),
             str("use at most ", kLongest, ": positions are 32-bit integers"));
  std::visit([&](const auto& o) { recall::check(o, context); }, options_);
}

std::string RecallTask::name() const { return recall_name(options_); }
int64_t RecallTask::vocab() const { return std::visit(Vocab(), options_); }

RecallRows RecallTask::rows(Split split, int64_t first, int64_t count) const {
  WEFT_CHECK(first >= 0 && count > 0, str(name(), ": ", count, " rows from ", first),
             "ask for at least one row from 0 on");
  auto make = [&] { return Tensor::empty({count, context_}, kI32, Device::cpu()); };
  RecallRows out{{make(), make(), make(), make(), make()}, make()};
  const auto length = static_cast<size_t>(context_);
  for (int64_t r = 0; r < count; ++r) {
    const recall::RecallRow row = draw_of(options_, context_, split, first + r, seed_);
    auto fill = [&](Tensor& tensor, auto value) {
      int32_t* to = tensor.mutable_data<int32_t>() + r * context_;
      for (size_t t = 0; t < length; ++t) to[t] = value(t);
    };
    fill(out.batch.tokens, [&](size_t t) { return row.ids[t]; });
    fill(out.batch.targets, [&](size_t t) { return row.targets[t]; });
    fill(out.batch.positions, [](size_t t) { return static_cast<int32_t>(t); });
    fill(out.batch.documents, [](size_t) { return 0; });
    fill(out.batch.document_positions, [](size_t t) { return static_cast<int32_t>(t); });
    fill(out.groups, [&](size_t t) { return row.groups[t]; });
  }
  return out;
}

SampleSource RecallTask::samples(Split split) const {
  return [task = *this, split](int64_t first, int64_t count) { return task.rows(split, first, count).batch; };
}

std::vector<std::string> RecallTask::group_names() const {
  return std::visit([&](const auto& o) { return recall::group_names(o, context_); }, options_);
}

std::string RecallTask::size_name() const {
  struct Names {
    const char* operator()(const MqarOptions&) const { return "pairs"; }
    const char* operator()(const CopyOptions&) const { return "items"; }
    const char* operator()(const NeedleOptions&) const { return "needles"; }
    const char* operator()(const InductionOptions&) const { return ""; }
    const char* operator()(const StateOptions&) const { return ""; }
  };
  return std::visit(Names(), options_);
}

std::vector<int64_t> RecallTask::sizes() const {
  RecallOptions options = options_;
  int64_t* size = std::visit([](auto& o) { return size_in(o); }, options);
  if (!size) return {0};
  std::vector<int64_t> sizes = {*size};
  for (*size = 1; *size <= context_; *size *= 2)
    if (fits(options, context_)) sizes.push_back(*size);
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return sizes;
}

RecallTask RecallTask::with_size(int64_t size) const {
  RecallOptions options = options_;
  if (int64_t* own = std::visit([](auto& o) { return size_in(o); }, options)) *own = size;
  return RecallTask(options, context_, seed_);
}

}  // namespace weft::data
