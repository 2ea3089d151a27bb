#include "src/training/comm_ranks.h"

#include <algorithm>
#include <limits>
#include <map>

#include "weft/core/dry_run.h"
#include "weft/core/error.h"
#include "weft/io/files.h"
#include "weft/ops/elementwise.h"

namespace weft {

namespace {

// Numbers of the CPU, through the memory that the communicator reads.
template <class F>
void on_device(Tensor& x, Device device, F&& f) {
  if (is_dry_run()) return;
  Tensor there = ops::to(x, device);
  f(there);
  if (!there.shares_memory_with(x)) x.set_bytes(there);
}

constexpr size_t kSumsAtATime = 2;

Tensor like(const Tensor& x, int64_t count) { return Tensor::empty({count}, x.dtype(), x.device()); }

// Gradients of bf16 values are f32.
DType dtype_of_gradient(const Tensor& x) { return x.dtype() == kF64 ? kF64 : kF32; }

}  // namespace

CommRanks::CommRanks(const RanksOptions& options, std::vector<Var> leaves, std::vector<Bucket> buckets,
                     bool keeps_parts)
    : comm_(*options.comm),
      leaves_(std::move(leaves)),
      buckets_(std::move(buckets)),
      bucket_of_(leaves_.size()),
      keeps_parts_(keeps_parts),
      overlaps_(options.overlaps_backward),
      // A sum that this thread waits for could stand before a ring on one rank and behind it on another, which does not use a parameter.
      // On a GPU they are of one stream, whoever waits.
      sums_at_end_(options.ranks_per_row > 1 && (!overlaps_ || leaves_[0].device().is_cuda())),
      device_(leaves_[0].device()),
      sums_(buckets_.size()) {
  if (!is_dry_run()) of_buckets_ = comm_.split(0, comm_.rank(), str("gradients of ", comm_.name()));
  for (size_t b = 0; b < buckets_.size(); ++b)
    for (size_t i : buckets_[b].params) bucket_of_[i] = b;
  start_step();
}

// Other ranks may be waiting for the sums of a step that this one has left.
CommRanks::~CommRanks() {
  if (thread_.is_idle()) return;
  of_buckets_->abort(str("rank ", comm_.rank(), " failed: ", failure_.empty() ? "it left a step" : failure_));
}

void CommRanks::start_step() {
  missing_.clear();
  for (const Bucket& bucket : buckets_) missing_.push_back(bucket.params.size());
  is_final_.assign(leaves_.size(), false);
  next_ = num_dropped_ = 0;
  begun_.clear();
  last_.reset();
  done_before_ = thread_.num_done();
}

void CommRanks::sum_counts(std::span<int64_t> counts) {
  if (is_dry_run()) {  // as if all ranks had the same
    for (int64_t& count : counts) count *= comm_.size();
    return;
  }
  Tensor all = Tensor::from(std::span<const int64_t>(counts), {static_cast<int64_t>(counts.size())});
  on_device(all, device_, [&](Tensor& there) { comm_.all_reduce(there); });
  std::copy_n(all.data<int64_t>(), counts.size(), counts.begin());
}

void CommRanks::sum_values(Tensor& values) {
  on_device(values, device_, [&](Tensor& there) { comm_.all_reduce(there); });
}

// Hooks of its owner may follow this one: a gradient is taken when the next is final.
void CommRanks::sum_gradient(size_t param, Tensor& /*grad*/) {
  if (last_) note_final(*last_);
  last_ = param;
  drop_summed();
}

void CommRanks::note_final(size_t param) {
  is_final_[param] = true;
  --missing_[bucket_of_[param]];
  if (!sums_at_end_) launch_final();
}

void CommRanks::launch_final() {
  for (; next_ < buckets_.size() && missing_[next_] == 0; ++next_) launch(next_);
}

bool CommRanks::has_thread() const { return overlaps_ && !device_.is_cuda() && !is_dry_run(); }

// On a GPU the sums go on in the stream of the communicator. A few of them at a time: their buffers are memory.
void CommRanks::launch(size_t bucket) {
  std::vector<Tensor> grads;
  for (size_t i : buckets_[bucket].params) grads.push_back(leaves_[i].grad());
  if (has_thread()) return thread_.add([this, bucket, grads = std::move(grads)] { sum(bucket, grads)(); });
  begun_.push_back(sum(bucket, std::move(grads)));
  end_all_but(overlaps_ && device_.is_cuda() ? kSumsAtATime : 0);
}

void CommRanks::end_all_but(size_t newest) {
  for (; begun_.size() > newest; begun_.pop_front()) begun_.front()();
}

CommRanks::End CommRanks::sum(size_t bucket, std::vector<Tensor> grads) {
  MemoryTag tag("gradients");
  return keeps_parts_ ? sum_parts(bucket, grads) : sum_everywhere(std::move(grads));
}

CommRanks::End CommRanks::sum_everywhere(std::vector<Tensor> grads) {
  int64_t count = 0;
  for (const Tensor& grad : grads) count += grad.num_elements();
  Tensor all = grads.size() == 1 ? grads[0] : like(grads[0], count);
  auto for_each_piece = [](std::vector<Tensor>& of, const Tensor& in, auto&& f) {
    int64_t begin = 0;
    for (Tensor& grad : of) {
      Tensor piece = in.slice(0, begin, begin + grad.num_elements());
      f(grad, piece);
      begin += grad.num_elements();
    }
  };
  if (grads.size() > 1)
    for_each_piece(grads, all, [](Tensor& grad, Tensor& piece) { piece.set_bytes(grad.reshape({-1})); });
  std::shared_ptr<dist::Transfer> transfer;
  if (!is_dry_run()) transfer = of_buckets_->start_all_reduce(all);
  return [=]() mutable {
    if (transfer) transfer->wait();
    if (grads.size() > 1)
      for_each_piece(grads, all, [](Tensor& grad, Tensor& piece) { grad.reshape({-1}).set_bytes(piece); });
  };
}

// Every rank sends to each what it updates, which sums in the order of ranks: as an all_reduce does, to the same bits.
CommRanks::End CommRanks::sum_parts(size_t bucket, const std::vector<Tensor>& grads) {
  const Bucket& plan = buckets_[bucket];
  auto grad_of = [&](size_t param) {
    return grads[static_cast<size_t>(std::find(plan.params.begin(), plan.params.end(), param) - plan.params.begin())];
  };
  auto packed = [&](const std::vector<Part>& parts) {
    if (parts.size() == 1) return part_of(grad_of(parts[0].param), parts[0]);
    Tensor all = like(grads[0], num_elements(parts));
    int64_t begin = 0;
    for (const Part& part : parts) {
      const int64_t end = begin + part.end - part.begin;
      all.slice(0, begin, end).set_bytes(part_of(grad_of(part.param), part));
      begin = end;
    }
    return all;
  };
  const int me = comm_.rank();
  const int64_t mine = num_elements(plan.parts[static_cast<size_t>(me)]);
  std::vector<dist::Send> sends;
  std::vector<dist::Receive> receives;
  std::vector<Tensor> from;  // each rank, what this one updates
  for (int r = 0; r < comm_.size(); ++r) {
    const std::vector<Part>& parts = plan.parts[static_cast<size_t>(r)];
    if (mine > 0) from.push_back(r == me ? packed(parts) : like(grads[0], mine));
    if (r == me) continue;
    if (mine > 0) receives.push_back({from.back(), r});
    if (!parts.empty()) sends.push_back({packed(parts), r});
  }
  std::shared_ptr<dist::Transfer> transfer;
  if (!is_dry_run()) transfer = of_buckets_->start_exchange(sends, receives);
  return [this, bucket, transfer, from = std::move(from), sends = std::move(sends)] {
    MemoryTag tag("gradients");
    if (transfer) transfer->wait();
    if (from.empty()) return;
    Tensor sum = ops::clone(from[0]);
    for (size_t r = 1; r < from.size(); ++r) ops::add_(sum, from[r]);
    sums_[bucket] = std::move(sum);
  };
}

// Of buckets whose sums are there the gradients of this rank alone are of no more use.
void CommRanks::drop_summed() {
  if (!keeps_parts_) return;
  const size_t num_done =
      thread_.num_done() > done_before_ ? static_cast<size_t>(thread_.num_done() - done_before_) : 0;
  const size_t end = has_thread() ? num_done : next_ - begun_.size();
  for (; num_dropped_ < end; ++num_dropped_)
    for (size_t i : buckets_[num_dropped_].params) leaves_[i].set_grad({});
}

void CommRanks::finish_gradients() {
  if (last_) note_final(*last_);
  last_.reset();
  for (size_t i = 0; i < leaves_.size(); ++i) {
    if (is_final_[i]) continue;  // backward came to all uses of the others, and none had a gradient for them
    if (!leaves_[i].grad().defined())
      leaves_[i].set_grad(Tensor::zeros(leaves_[i].shape(), dtype_of_gradient(leaves_[i].value()), device_));
    note_final(i);
  }
  launch_final();
  end_all_but(0);
  thread_.wait();
  drop_summed();
}

std::vector<Tensor> CommRanks::take_parts() {
  std::vector<Tensor> grads;
  for (const Var& leaf : leaves_) grads.push_back(Tensor::empty({0}, dtype_of_gradient(leaf.value()), device_));
  for (size_t b = 0; b < buckets_.size(); ++b) {
    int64_t begin = 0;
    for (const Part& part : buckets_[b].parts[static_cast<size_t>(comm_.rank())]) {
      const int64_t end = begin + part.end - part.begin;
      const Tensor of_part = sums_[b].slice(0, begin, end);
      const bool is_whole = part.end - part.begin == leaves_[part.param].value().num_elements();
      grads[part.param] = is_whole ? of_part.reshape(leaves_[part.param].shape()) : of_part;
      begin = end;
    }
    sums_[b] = {};
  }
  return grads;
}

// A rank may have reports that others lack: an expert reports where tokens have chosen it.
std::vector<Sharing::Report> CommRanks::merged(const std::vector<Sharing::Report>& reports) const {
  if (is_dry_run()) return reports;
  constexpr char kMax = '^', kMean = '/';  // the first character of a line says which
  std::string names;
  for (const Sharing::Report& r : reports) names += str(r.is_max ? kMax : kMean, r.name, '\n');
  std::vector<Sharing::Report> all;
  std::map<std::string, size_t, std::less<>> places;
  for (const std::string& text : gather_texts(comm_, names, device_))
    for (size_t begin = 0, end; begin < text.size(); begin = end + 1) {
      end = text.find('\n', begin);
      const std::string name = text.substr(begin + 1, end - begin - 1);
      const bool is_max = text[begin] == kMax;
      if (places.emplace(name, all.size()).second)
        all.push_back({name, is_max ? -std::numeric_limits<double>::infinity() : 0, 0, is_max});
    }
  if (all.empty()) return all;
  for (const Sharing::Report& r : reports) all[places.at(r.name)] = r;
  const auto count = static_cast<int64_t>(all.size());
  Tensor sums = Tensor::zeros({2, count}, kF64, Device::cpu()), maxima = Tensor::zeros({count}, kF64, Device::cpu());
  auto *sum = sums.mutable_data<double>(), *max = maxima.mutable_data<double>();
  for (size_t i = 0; i < all.size(); ++i) {
    sum[i] = all[i].is_max ? 0 : all[i].sum;
    sum[all.size() + i] = all[i].count;
    max[i] = all[i].sum;
  }
  on_device(sums, device_, [&](Tensor& there) { comm_.all_reduce(there); });
  on_device(maxima, device_, [&](Tensor& there) { comm_.all_reduce(there, dist::Reduce::max); });
  for (size_t i = 0; i < all.size(); ++i) {
    all[i].sum = all[i].is_max ? maxima.data<double>()[i] : sums.data<double>()[i];
    all[i].count = sums.data<double>()[all.size() + i];
  }
  return all;
}

std::vector<std::string> gather_texts(dist::Communicator& comm, const std::string& text, Device device) {
  Tensor size = ops::to(Tensor::from({static_cast<int64_t>(text.size())}, {1}), device);
  const std::vector<int64_t> sizes = comm.all_gather(size).to_vector<int64_t>();
  const int64_t most = *std::max_element(sizes.begin(), sizes.end());
  if (most == 0) return std::vector<std::string>(sizes.size());
  Tensor mine = Tensor::zeros({most}, kU8, Device::cpu());
  std::copy(text.begin(), text.end(), mine.mutable_data<uint8_t>());
  const std::vector<uint8_t> bytes = comm.all_gather(ops::to(mine, device)).to_vector<uint8_t>();
  std::vector<std::string> texts;
  for (size_t r = 0; r < sizes.size(); ++r) {
    const auto* begin = bytes.data() + r * static_cast<size_t>(most);
    texts.emplace_back(begin, begin + sizes[r]);
  }
  return texts;
}

void check_same_weights(dist::Communicator& comm, std::span<const std::string> names, std::span<const Tensor> weights) {
  if (comm.size() == 1 || is_dry_run()) return;
  std::string mine;
  for (size_t i = 0; i < names.size(); ++i) {
    const Tensor here = weights[i].cpu();
    const std::string_view bytes(static_cast<const char*>(here.raw()), here.num_bytes());
    mine += str(names[i], " ", here.shape(), " ", io::xxh3_64(bytes), '\n');
  }
  const std::vector<std::string> texts = gather_texts(comm, mine, weights[0].device());
  for (size_t r = 1; r < texts.size(); ++r) {
    if (texts[r] == texts[0]) continue;
    const auto differs = std::mismatch(texts[0].begin(), texts[0].end(), texts[r].begin(), texts[r].end()).first;
    const auto at = static_cast<size_t>(differs - texts[0].begin());
    const size_t begin = at == 0 ? 0 : texts[0].rfind('\n', at - 1) + 1;  // of the line; npos + 1 is 0
    const std::string line = (begin < texts[0].size() ? texts[0] : texts[r]).substr(begin);
    fail(str("training: ranks 0 and ", r, " have different models, from ", line.substr(0, line.find(' ')), " on"),
         "make the model on every rank with the same options and seed, or load one file on all");
  }
}

bool on_any_rank(dist::Communicator* comm, bool is_so) {
  if (!comm || comm->size() == 1) return is_so;
  Tensor any = Tensor::from({static_cast<int64_t>(is_so)}, {1});
  on_device(any, default_device(), [&](Tensor& there) { comm->all_reduce(there, dist::Reduce::max); });
  return any.data<int64_t>()[0] != 0;
}

}  // namespace weft
