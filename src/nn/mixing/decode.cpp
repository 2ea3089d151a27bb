// The tokens here come behind those in a cache, one document per row where sums and neighbours are asked for.
#include "src/nn/mixing/cache.h"
#include "src/nn/mixing/local.h"
#include "weft/core/error.h"

namespace weft {

namespace {

class Decode final : public Local {
 public:
  Decode(const TokenTable& table, std::shared_ptr<Cache> cache) : Local(table), cache_(std::move(cache)) {
    WEFT_CHECK(cache_->batch() == table.batch(),
               str("decode: ", table.batch(), " rows for a cache of ", cache_->batch()),
               "make the cache for this batch");
    cache_->check_room(table.num_tokens());
  }

  KeySet keys(const Var& k_BTGK, const Var& v_BTGV, const Var& bias, int64_t value_width) override {
    WEFT_CHECK(!is_recording(), "attend: decoding with a cache has no gradient", "decode under NoGrad");
    Cache::Slot& slot = next_slot();
    Tensor k = cache_->append(slot.a, k_BTGK.value());
    Tensor v = v_BTGV.defined() ? cache_->append(slot.b, v_BTGV.value()) : k.slice(-1, 0, value_width);
    Var biases = bias.defined() ? Var(cache_->append(slot.c, bias.value())) : Var();
    return {k, v, biases, cache_->keys(table_.attention_tokens())};
  }

  State attend(const QuerySet& queries, const KeySet& keys, const Call& call) override {
    Call how = call;
    how.options.dropout = 0;
    return Local::attend(queries, keys, how);
  }

  Var prefix(const Var& x, int64_t window) override {
    check_one_document("scan");
    Cache::Slot& slot = next_slot();
    const int64_t T = table_.num_tokens();
    if (window > 0) {  // the slot holds what later windows reach of the earlier tokens
      const Var parts[] = {slot.a.defined() ? Var(slot.a) : slice(x, 1, 0, 0), x};
      Var all = concatenate(parts, 1);
      const int64_t S = all.size(1);
      slot.a = all.value().slice(1, std::max<int64_t>(0, S - (window - 1)), S);
      return slice(cumsum(all, 1, {.window = window}), 1, S - T, S);
    }
    Var total = cumsum(x, 1);
    if (slot.a.defined()) total = total + Var(slot.a);
    slot.a = total.value().slice(1, T - 1, T);
    return total;
  }

  Neighbours neighbours(const Var& x, int64_t before, int64_t) override {
    check_one_document("shift");
    Cache::Slot& slot = next_slot();
    Shape shape = x.shape();
    shape[1] = before;
    const Var parts[] = {slot.a.defined() ? slot.a : Tensor::zeros(shape, x.dtype(), x.device()), x};
    Var all = concatenate(parts, 1);
    slot.a = all.value().slice(1, x.size(1), x.size(1) + before);
    return {all, {}, {}};
  }

  std::vector<Var> gather(std::span<const Var> values) override {
    WEFT_CHECK(!is_recording() && !table_.documents().defined(), "gather: decoding with a gradient or with documents",
               "decode under NoGrad, one document per row");
    std::vector<Var> all;
    for (const Var& x : values) all.push_back(cache_->append(next_slot().a, x.value()));
    return all;
  }

  const GatheredTokens& gathered() override {
    if (!gathered_) {
      ops::AttentionTokens all = cache_->keys(table_.attention_tokens());
      gathered_.emplace(all.positions, all.documents, all.positions);
    }
    return *gathered_;
  }

  void finish_step() override { cache_->advance(table_.num_tokens()); }

 private:
  Cache::Slot& next_slot() { return cache_->slot(next_slot_++); }
  void check_one_document(std::string_view what) const {
    WEFT_CHECK(!table_.documents().defined(), str(what, ": decoding with documents"), "decode one document per row");
  }

  std::shared_ptr<Cache> cache_;
  size_t next_slot_ = 0;
};

}  // namespace

std::unique_ptr<Mixing> make_decode(const TokenTable& table, std::shared_ptr<Cache> cache) {
  return std::make_unique<Decode>(table, std::move(cache));
}

}  // namespace weft
