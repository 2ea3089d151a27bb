#include "distributed/context/heads.h"

#include <numeric>

#include "weft/core/error.h"

namespace weft::dist {

ops::AttentionOptions options_of_heads(const ops::AttentionOptions& options, int64_t begin, int64_t end) {
  ops::AttentionOptions of = options;
  of.first_head += begin;
  Tensor& slopes = of.score.alibi_slopes;
  if (slopes.defined()) slopes = slopes.slice(0, begin, end);
  return of;
}

Call heads_of(const Call& call, int64_t begin, int64_t end) {
  const int64_t heads = call.queries.q.size(2), kv_heads = call.keys.k.size(2), each = heads / kv_heads;
  Call of = call;
  auto take = [&](Tensor* x) {
    *x = x->size(2) == heads ? x->slice(2, begin * each, end * each) : x->slice(2, begin, end);
  };
  Queries& q = of.queries;
  for (Tensor* x : defined_of({&q.q, &q.bias, &q.dout, &of.keys.k, &of.keys.v, &of.keys.bias})) take(x);
  for (Tensor* x : defined_of({&q.lse, &q.delta})) take(x), *x = ops::contiguous(*x);
  of.options = options_of_heads(call.options, begin * each, end * each);
  return of;
}

HeadExchange::HeadExchange(Communicator& comm, int first, int count, int64_t heads, int64_t kv_heads)
    : comm_(comm), first_(first), count_(count), heads_(heads) {
  if (count == 1) return;
  WEFT_CHECK(kv_heads > 0 && heads % kv_heads == 0,
             str("context attention: ", heads, " query heads are not a multiple of ", kv_heads, " key heads"),
             "use a number of query heads that is a multiple of the key/value heads");
  // Runs of query heads that stay within one key/value head, on every rank as many.
  const int64_t each = heads / count, group = heads / kv_heads, run = std::gcd(each, group);
  queries_.total = heads, keys_.total = kv_heads, keys_.has_copies = each / run * count > kv_heads;
  for (int64_t u = 0; u < count; ++u) {
    queries_.heads.emplace_back(), keys_.heads.emplace_back();
    for (int64_t h = u * each; h < (u + 1) * each; ++h) queries_.heads.back().push_back(h);
    for (int64_t h = u * each; h < (u + 1) * each; h += run) keys_.heads.back().push_back(h / group);
  }
}

Tensor HeadExchange::spread(const Tensor& x, const Deal& deal) const {
  Shape shape = x.shape();
  shape[2] = static_cast<int64_t>(deal.heads.front().size());
  shape.insert(0, count_);
  Tensor parts = Tensor::empty(shape, x.dtype(), x.device());
  for (int u = 0; u < count_; ++u) {
    const std::vector<int64_t>& heads = deal.heads[static_cast<size_t>(u)];
    // Neighbouring heads in one copy.
    for (size_t i = 0, end = 0; i < heads.size(); i = end) {
      for (end = i + 1; end < heads.size() && heads[end] == heads[end - 1] + 1;) ++end;
      Tensor to = parts.select(0, u).slice(2, static_cast<int64_t>(i), static_cast<int64_t>(end));
      ops::copy_(to, x.slice(2, heads[i], heads[end - 1] + 1));
    }
  }
  return parts;
}

Tensor HeadExchange::collect(const Tensor& x, const Deal& deal) const {
  Shape shape = x.select(0, 0).shape();
  const int64_t each = shape[2];
  shape[2] = deal.total;
  Tensor all =
      deal.has_copies ? Tensor::zeros(shape, x.dtype(), x.device()) : Tensor::empty(shape, x.dtype(), x.device());
  for (int u = 0; u < count_; ++u) {
    const std::vector<int64_t>& heads = deal.heads[static_cast<size_t>(u)];
    if (!deal.has_copies) {
      Tensor to = all.slice(2, heads.front(), heads.front() + each);
      ops::copy_(to, x.select(0, u));
      continue;
    }
    for (int64_t i = 0; i < each; ++i) {
      const int64_t head = heads[static_cast<size_t>(i)];
      Tensor to = all.slice(2, head, head + 1);
      ops::add_(to, x.select(0, u).slice(2, i, i + 1));
    }
  }
  return all;
}

std::vector<Tensor> HeadExchange::swap(const std::vector<Tensor>& parts) const {
  const int me = comm_.rank() - first_;
  std::vector<Tensor> results;
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (const Tensor& part : parts) {
    Tensor& result = results.emplace_back(Tensor::empty(part.shape(), part.dtype(), part.device()));
    for (int u = 0; u < count_; ++u) {
      if (u == me) {
        result.select(0, u).set_bytes(part.select(0, u));
        continue;
      }
      sends.push_back({part.select(0, u), first_ + u});
      receives.push_back({result.select(0, u), first_ + u});
    }
  }
  comm_.exchange(sends, receives);
  return results;
}

Call HeadExchange::call(const Call& call) const {
  if (count_ == 1) return call;
  Call of = call;
  Queries& q = of.queries;
  Keys& k = of.keys;
  std::vector<Tensor*> with_heads = defined_of({&q.q, &q.bias, &q.dout, &q.lse, &q.delta, &k.k, &k.v, &k.bias});
  std::vector<Tensor*> tokens = defined_of({&k.positions, &k.documents});
  std::vector<Tensor> parts;
  for (const Tensor* x : with_heads) parts.push_back(spread(*x, deal_of(*x)));
  for (const Tensor* x : tokens)  // the same to all
    parts.push_back(ops::contiguous(x->unsqueeze(0).expand({count_, x->size(0), x->size(1)})));
  std::vector<Tensor> results = swap(parts);
  with_heads.insert(with_heads.end(), tokens.begin(), tokens.end());
  for (size_t i = 0; i < results.size(); ++i) {  // [U, B, n, ...] -> [B, U n, ...]
    const Shape& shape = results[i].shape();
    Shape joined = results[i].select(0, 0).shape();
    joined[1] = shape[0] * shape[2];
    *with_heads[i] = ops::contiguous(results[i].transpose(0, 1)).reshape(joined);
  }
  q.positions = k.positions, q.documents = k.documents;
  const int64_t begin = (comm_.rank() - first_) * heads_each();
  of.options = options_of_heads(call.options, begin, begin + heads_each());
  return of;
}

void HeadExchange::to_tokens(std::vector<Tensor*> of_queries, std::vector<Tensor*> of_keys) const {
  if (count_ == 1) return;
  std::vector<Tensor*> all;
  std::vector<const Deal*> deals;
  auto choose = [&](const std::vector<Tensor*>& tensors, const Deal& deal) {
    for (Tensor* x : tensors)
      if (x->defined()) all.push_back(x), deals.push_back(&deal);
  };
  choose(of_queries, queries_), choose(of_keys, keys_);
  std::vector<Tensor> parts;
  for (const Tensor* x : all) {  // [B, U n, ...] -> [U, B, n, ...]
    Shape shape = x->shape();
    shape[1] /= count_;
    shape.insert(1, count_);
    parts.push_back(ops::contiguous(x->reshape(shape).transpose(0, 1)));
  }
  const std::vector<Tensor> results = swap(parts);
  for (size_t i = 0; i < all.size(); ++i) *all[i] = collect(results[i], *deals[i]);
}

}  // namespace weft::dist
