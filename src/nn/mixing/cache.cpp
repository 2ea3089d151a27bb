#include "src/nn/mixing/cache.h"

#include "weft/autograd/functions.h"
#include "weft/core/error.h"

namespace weft {

Cache::Cache(int64_t batch, int64_t max_tokens) : batch_(batch), max_tokens_(max_tokens) {
  WEFT_CHECK(batch >= 1 && max_tokens >= 1, str("make_cache: batch ", batch, ", max_tokens ", max_tokens),
             "both must be 1 or more");
  positions_ = Tensor::zeros({batch, max_tokens}, kI32);
  documents_ = Tensor::zeros({batch, max_tokens}, kI32);
}

std::shared_ptr<Cache> make_cache(int64_t batch, int64_t max_tokens) {
  return std::make_shared<Cache>(batch, max_tokens);
}
int64_t cached_tokens(const Cache& cache) { return cache.num_tokens(); }

Cache::Slot& Cache::slot(size_t index) {
  if (index >= slots_.size()) slots_.resize(index + 1);
  return slots_[index];
}

void Cache::check_room(int64_t more) const {
  WEFT_CHECK(num_tokens_ + more <= max_tokens_,
             str("decode: ", num_tokens_, " tokens are cached and ", more, " come, room is for ", max_tokens_),
             "make the cache larger");
}

Tensor Cache::append(Tensor& store, const Tensor& fresh) const {
  if (!store.defined()) {
    Shape shape = fresh.shape();
    shape[1] = max_tokens_;
    store = Tensor::zeros(shape, fresh.dtype(), fresh.device());
  }
  Tensor place = store.slice(1, num_tokens_, num_tokens_ + fresh.size(1));
  assign(place, fresh);
  return store.slice(1, 0, num_tokens_ + fresh.size(1));
}

ops::AttentionTokens Cache::keys(const ops::AttentionTokens& fresh) {
  ops::AttentionTokens all;
  all.positions = append(positions_, fresh.positions);
  if (fresh.documents.defined()) all.documents = append(documents_, fresh.documents);
  return all;
}

}  // namespace weft
