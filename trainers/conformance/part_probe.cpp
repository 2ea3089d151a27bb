// Residual streams, norms and feed-forward networks under the suite of mixers: a mixer of five sublayers y_l = tanh(norm(h_l) W_l), the
// second of which also reads the token before, with the part under test in its place. A feed-forward network is the third sublayer.
#include "trainers/conformance/own_parts.h"
#include "trainers/conformance/subject.h"
#include "weft/nn/residual.h"

namespace weft::conformance {

namespace {

constexpr int64_t kSublayers = 5;

// What is not given is the library's.
struct Parts {
  ResidualMaker residual = StandardResidualOptions{};
  NormMaker norm = {};
  FfnMaker ffn = {};
};

class Probe final : public Mixer {
 public:
  Probe(const Parts& parts, const MixerArgs& args, Rng rng)
      : residual_(
            parts.residual({.dim = args.dim, .sublayers = kSublayers, .norm_eps = args.norm_eps}, rng["residual"])),
        norm_eps_(args.norm_eps) {
    if (parts.norm) {
      norm_ = std::make_unique<Norm>(args.dim, NormOptions{.eps = args.norm_eps}, parts.norm, rng["norm"]);
      name_part({"norm", *norm_});
    }
    if (parts.ffn) {
      ffn_ = parts.ffn({.dim = args.dim, .std = args.std, .out_std = args.out_std}, rng["ffn"]);
      name_part({"ffn", *ffn_});
    }
    for (uint64_t l = 0; l < kSublayers; ++l) {
      maps_.push_back(std::make_unique<Linear>(args.dim, args.dim, rng["maps"][l], LinearOptions{.std = args.std}));
      name_part({str("maps.", l), *maps_.back()});
    }
    if (!norm_) {
      gain_ = std::make_unique<Param>(Tensor::full({args.dim}, 1));
      name_part({"gain", *gain_});
    }
    name_part({"residual", *residual_});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    std::unique_ptr<ResidualStream> stream = residual_->start(x_BTD, tokens);
    for (size_t l = 0; l < maps_.size(); ++l) {
      Var h = norm_ ? (*norm_)(stream->input()) : rms_norm(stream->input(), *gain_, norm_eps_);
      if (ffn_ && l == 2) stream->write(ffn_->forward(h, tokens));
      else stream->write(tanh((*maps_[l])(l == 1 ? h + tokens.shift(h, 1) * 0.5 : h)));
    }
    return stream->output();
  }
  double flops_per_token(double) const override { return 0; }

 private:
  std::unique_ptr<Residual> residual_;
  std::unique_ptr<Norm> norm_;
  std::unique_ptr<Ffn> ffn_;
  std::vector<std::unique_ptr<Linear>> maps_;
  std::unique_ptr<Param> gain_;  // of the library's norm
  double norm_eps_;
};

MixerRow probe_row(std::string name, const Parts& parts, std::string_view equation) {
  return {.name = std::move(name),
          .make = [parts](const MixerArgs& args, Rng rng) { return std::make_unique<Probe>(parts, args, rng); },
          .equation = equation,
          .lacks = {.heads = "it has no heads"},
          .toy = MixerRow::Toy::recent,
          .toy_loss = 0.3};
}

// The maker with the numbers and texts of its row.
template <class Maker>
Maker with_numbers(const cli::PartRow<Maker>& row) {
  return [row](auto args, auto... more) {
    args.numbers = row.numbers, args.texts = row.texts;
    return row.make(args, more...);
  };
}

}  // namespace

MixerRow residual_row(const ResidualRow& row) {
  MixerRow out = probe_row("residual." + row.name, {.residual = row.make}, row.equation);
  out.source = row.source;
  out.cost = row.cost;
  out.lacks.heads = "a residual stream has no heads";
  return out;
}

std::vector<OwnPart> own_parts(const cli::Extensions& own) {
  std::vector<OwnPart> out;
  auto add = [&](const auto& part, MixerRow row, std::function<void(LanguageModelOptions&)> put_into) {
    row.numbers = part.numbers;
    row.texts = part.texts;
    out.push_back({std::move(row), std::move(put_into)});
  };
  for (const auto& row : own.norms) {
    NormMaker make = with_numbers(row);
    add(row, probe_row("norm." + row.name, {.norm = make}, row.equation),
        [make](LanguageModelOptions& o) { o.own_norm = make; });
  }
  for (const auto& row : own.ffns) {
    FfnMaker make = with_numbers(row);
    add(row, probe_row("ffn." + row.name, {.ffn = make}, row.equation),
        [make](LanguageModelOptions& o) { o.own_ffn = make; });
  }
  for (const auto& row : own.residuals) {
    ResidualMaker make = with_numbers(row);
    add(row, probe_row("residual." + row.name, {.residual = make}, row.equation),
        [make](LanguageModelOptions& o) { o.residual = make; });
  }
  auto add_softmax = [&](const char* kind, const auto& part, auto put) {
    SoftmaxOptions small{.heads = 4};
    put(small);
    add(part, {.name = str(kind, ".", part.name), .make = small, .equation = part.equation},
        [put](LanguageModelOptions& o) {
          for (MixerMaker& mixer : o.mixers)
            if (auto* softmax = mixer.target<SoftmaxOptions>()) put(*softmax);
        });
  };
  for (const auto& row : own.head_mixtures)
    add_softmax("heads", row, [make = with_numbers(row)](SoftmaxOptions& o) { o.own_heads = make; });
  for (const auto& row : own.attentions) {
    const OwnAttention attention = with_numbers(row)(cli::AttentionArgs());
    add_softmax("attention", row, [attention](SoftmaxOptions& o) { o.own_attention = attention; });
    out.back().row.lacks.devices = "functors of a program's own run on the CPU";
  }
  return out;
}

std::vector<MixerRow> residual_rows() {
  std::vector<MixerRow> rows;
  for (const ResidualRow& row : residual_table()) rows.push_back(residual_row(row));
  return rows;
}

}  // namespace weft::conformance
