// Attention, materialised, float64, plain loops: the truth the blockwise core is compared with.
// Letters as in weft/ops/attention.h; all tensors as row-major vectors of double.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "weft/ops/attention.h"

namespace weft::reference {

using Numbers = std::vector<double>;

inline Numbers numbers(const Tensor& t) {
  if (!t.defined()) return {};
  if (t.dtype() == kF64) return t.to_vector<double>();
  Numbers out;
  if (t.dtype() == kBF16)
    for (BFloat16 x : t.to_vector<BFloat16>()) out.push_back(static_cast<float>(x));
  else
    for (float x : t.to_vector<float>()) out.push_back(x);
  return out;
}

class AttentionReference {
 public:
  // Results: out [B, T, H, V], lse [B, T, H] (empty for sum), log of the sum of sizes of a row's weights before they are normalised,
  // entropy and largest score or size [B, T, H], column mass [B, S, H].
  Numbers out, lse, log_sizes, entropy, top, mass;
  // After backward(): gradients in the shapes of q, k, v and of the biases that there are.
  Numbers dq, dk, dv, dquery_bias, dkey_bias;

  AttentionReference(const Tensor& q, const Tensor& k, const Tensor& v, const ops::AttentionTokens& queries,
                     const ops::AttentionTokens& keys, const ops::AttentionOptions& options)
      : options_(options),
        B_(q.size(0)),
        T_(q.size(1)),
        S_(k.size(1)),
        H_(q.size(2)),
        G_(k.size(2)),
        K_(q.size(3)),
        V_(v.size(3)),
        q_(numbers(q)),
        k_(numbers(k)),
        v_(numbers(v)),
        q_pos_(queries.positions.to_vector<int32_t>()),
        k_pos_(keys.positions.to_vector<int32_t>()) {
    if (queries.documents.defined()) q_doc_ = queries.documents.to_vector<int32_t>();
    if (keys.documents.defined()) k_doc_ = keys.documents.to_vector<int32_t>();
    if (options.score.alibi_slopes.defined()) slopes_ = options.score.alibi_slopes.to_vector<float>();
    query_bias_ = numbers(options.score.query_bias), key_bias_ = numbers(options.score.key_bias);
    if (!key_bias_.empty()) bias_heads_ = options.score.key_bias.size(2);
    scale_ = options.scale != 0 ? options.scale : 1 / std::sqrt(static_cast<double>(K_));
    forward();
  }

  void backward(const Tensor& dout_tensor, const Tensor& dlse_tensor) {
    Numbers dout = numbers(dout_tensor), dlse = numbers(dlse_tensor);
    dq.assign(q_.size(), 0), dk.assign(k_.size(), 0), dv.assign(v_.size(), 0);
    dquery_bias.assign(query_bias_.size(), 0), dkey_bias.assign(key_bias_.size(), 0);
    for (int64_t b = 0; b < B_; ++b)
      for (int64_t h = 0; h < H_; ++h)
        for (int64_t i = 0; i < T_; ++i) {
          double delta = dlse.empty() ? 0 : -dlse[row(b, i, h)];
          for (int64_t c = 0; c < V_; ++c) delta += dout[row(b, i, h) * V_ + c] * out[row(b, i, h) * V_ + c];
          for (int64_t j = 0; j < S_; ++j) {
            if (!is_visible(b, i, j)) continue;
            double w = weight_[(row(b, i, h)) * S_ + j], z = drop(b, h, i, j), dw = 0;
            for (int64_t c = 0; c < V_; ++c) {
              dw += dout[row(b, i, h) * V_ + c] * v_[key(b, j, h) * V_ + c] * z;
              dv[static_cast<size_t>(key(b, j, h) * V_ + c)] += w * z * dout[row(b, i, h) * V_ + c];
            }
            double ds = !has_lse() ? dw * activation_slope(score(b, h, i, j)) : std::abs(w) * dw - w * delta;
            if (!query_bias_.empty()) dquery_bias[row(b, i, h)] += ds;
            if (!key_bias_.empty()) dkey_bias[bias_of_key(b, j, h)] += ds;
            ds *= slope(raw(b, h, i, j)) * scale_;
            for (int64_t c = 0; c < K_; ++c) {
              dq[static_cast<size_t>(row(b, i, h) * K_ + c)] += ds * k_[key(b, j, h) * K_ + c];
              dk[static_cast<size_t>(key(b, j, h) * K_ + c)] += ds * q_[row(b, i, h) * K_ + c];
            }
          }
        }
  }

  bool is_visible(int64_t b, int64_t i, int64_t j) const {
    int64_t q = q_pos_[b * T_ + i], k = k_pos_[b * S_ + j];
    const ops::AttentionMask& m = options_.mask;
    bool keep = true;
    if (m.is_causal && k > q) keep = false;
    if (m.window > 0 && (q - k < 0 || q - k >= m.window)) keep = false;
    if (m.prefix > 0 && k < m.prefix) keep = true;
    if (m.same_document && (q_doc_[b * T_ + i] != k_doc_[b * S_ + j] || k_doc_[b * S_ + j] < 0)) keep = false;
    return keep;
  }

 private:
  bool has_lse() const { return options_.normaliser != ops::Normaliser::sum; }
  bool is_signed() const { return options_.normaliser == ops::Normaliser::signed_softmax; }
  int64_t row(int64_t b, int64_t i, int64_t h) const { return (b * T_ + i) * H_ + h; }
  int64_t key(int64_t b, int64_t j, int64_t h) const { return (b * S_ + j) * G_ + h / (H_ / G_); }

  int64_t bias_of_key(int64_t b, int64_t j, int64_t h) const {
    return (b * S_ + j) * bias_heads_ + h / (H_ / bias_heads_);
  }

  double raw(int64_t b, int64_t h, int64_t i, int64_t j) const {
    double s = 0;
    for (int64_t c = 0; c < K_; ++c) s += q_[row(b, i, h) * K_ + c] * k_[key(b, j, h) * K_ + c];
    return s * scale_;
  }
  double score(int64_t b, int64_t h, int64_t i, int64_t j) const {
    double s = raw(b, h, i, j), cap = options_.score.softcap;
    if (cap > 0) s = cap * std::tanh(s / cap);
    if (!slopes_.empty()) s -= double{slopes_[h]} * (q_pos_[b * T_ + i] - k_pos_[b * S_ + j]);
    if (!query_bias_.empty())
      s += query_bias_[row(b, i, h)] + (key_bias_.empty() ? 0 : key_bias_[bias_of_key(b, j, h)]);
    else if (!key_bias_.empty()) s += key_bias_[bias_of_key(b, j, h)];
    return s + options_.score.shift;
  }
  double activated(double s) const {
    switch (options_.score.activation) {
      case ops::ScoreActivation::sigmoid: return 1 / (1 + std::exp(-s));
      case ops::ScoreActivation::relu: return std::max(s, 0.0);
      case ops::ScoreActivation::elu1: return s > 0 ? s + 1 : std::exp(s);
      case ops::ScoreActivation::taylor2: return 1 + s + s * s / 2;
      case ops::ScoreActivation::none: break;
    }
    return s;
  }
  double activation_slope(double s) const {
    switch (options_.score.activation) {
      case ops::ScoreActivation::sigmoid: return activated(s) * (1 - activated(s));
      case ops::ScoreActivation::relu: return s > 0;
      case ops::ScoreActivation::elu1: return s > 0 ? 1 : std::exp(s);
      case ops::ScoreActivation::taylor2: return 1 + s;
      case ops::ScoreActivation::none: break;
    }
    return 1;
  }
  double slope(double raw) const {
    double cap = options_.score.softcap, y = cap > 0 ? std::tanh(raw / cap) : 0;
    return 1 - y * y;
  }
  double drop(int64_t b, int64_t h, int64_t i, int64_t j) const {
    if (options_.dropout == 0) return 1;
    auto bits = philox({static_cast<uint32_t>(q_pos_[b * T_ + i]), static_cast<uint32_t>(k_pos_[b * S_ + j]),
                        static_cast<uint32_t>(options_.first_head + h), static_cast<uint32_t>(options_.first_row + b)},
                       options_.dropout_rng.key());
    return double{uniform_from_bits(bits[0])} < options_.dropout ? 0 : 1 / (1 - options_.dropout);
  }

  void forward() {
    constexpr double kNone = -std::numeric_limits<double>::infinity();
    out.assign(B_ * T_ * H_ * V_, 0), weight_.assign(B_ * T_ * H_ * S_, 0), mass.assign(B_ * S_ * H_, 0);
    if (has_lse()) lse.assign(B_ * T_ * H_, kNone);
    log_sizes.assign(B_ * T_ * H_, kNone), entropy.assign(B_ * T_ * H_, 0), top.assign(B_ * T_ * H_, kNone);
    for (int64_t b = 0; b < B_; ++b)
      for (int64_t h = 0; h < H_; ++h)
        for (int64_t i = 0; i < T_; ++i) {
          double* w = &weight_[row(b, i, h) * S_];
          double max = kNone, sum = 0;
          for (int64_t j = 0; j < S_; ++j)
            if (is_visible(b, i, j)) {
              w[j] = has_lse() ? score(b, h, i, j) : activated(score(b, h, i, j));
              max = std::max(max, has_lse() && !is_signed() ? w[j] : std::abs(w[j]));
            }
          if (has_lse() && max != kNone) {
            for (int64_t j = 0; j < S_; ++j) {
              double s = w[j], size = is_visible(b, i, j) ? std::exp((is_signed() ? std::abs(s) : s) - max) : 0;
              sum += size;
              w[j] = is_signed() && s < 0 ? -size : size;
            }
            for (int64_t j = 0; j < S_; ++j) w[j] /= sum;
            lse[row(b, i, h)] = max + std::log(sum);
          }
          double sizes = 0;
          for (int64_t j = 0; j < S_; ++j) sizes += std::abs(w[j]);
          top[row(b, i, h)] = max, log_sizes[row(b, i, h)] = has_lse() ? lse[row(b, i, h)] : std::log(sizes);
          for (int64_t j = 0; j < S_; ++j) {
            double share = w[j] != 0 ? std::abs(w[j]) / sizes : 0;
            mass[(b * S_ + j) * H_ + h] += share;
            if (share > 0) entropy[row(b, i, h)] -= share * std::log(share);
            double z = w[j] != 0 ? w[j] * drop(b, h, i, j) : 0;
            for (int64_t c = 0; c < V_; ++c) out[row(b, i, h) * V_ + c] += z * v_[key(b, j, h) * V_ + c];
          }
        }
  }

  ops::AttentionOptions options_;
  int64_t B_, T_, S_, H_, G_, K_, V_, bias_heads_ = 1;
  double scale_;
  Numbers q_, k_, v_, query_bias_, key_bias_, weight_;
  std::vector<int32_t> q_pos_, k_pos_, q_doc_, k_doc_;
  std::vector<float> slopes_;
};

}  // namespace weft::reference
