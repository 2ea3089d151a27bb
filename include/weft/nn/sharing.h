// What layers leave for others beside their outputs: values by name, losses, reports and running means.
// B batch rows, T tokens, D model width.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "weft/nn/module.h"
#include "weft/nn/token_table.h"

namespace weft {

class Sharing {
 public:
  Sharing(const TokenTable& table, const TokensOptions& options);
  Sharing(const Sharing&) = delete;
  Sharing& operator=(const Sharing&) = delete;

  // Values of an earlier layer or of the model, by name.
  void share(std::string_view name, const Var& value);
  const Var& shared(std::string_view name) const;  // Error that lists the names if it is missing
  bool has_shared(std::string_view name) const;

  // Auxiliary losses (weighted, added to the model's) and statistics; nothing is added when a forward is recomputed.
  struct Loss {
    std::string name;  // path of the module that added it, and which: "model.layers.0.mixer.router.balance_loss"
    Var value;         // scalar
    double weight;
  };
  struct Report {
    std::string name;  // path of the module that reported, and what
    double sum, count;
    bool is_max = false;  // the largest `sum` instead of sum / count
  };
  void add_loss(std::string_view name, const Var& value, double weight);
  // Adds to a Buffer's mean: in training, once per layer and micro-batch. `sum` has the buffer's shape, `count` is one number.
  void accumulate(Buffer& buffer, const Var& sum, const Var& count);
  // Whether report() is heard: not outside diagnostics, and not when a forward is run again.
  bool takes_reports() const;
  void report(std::string_view name, double sum, double count);  // nothing where nothing was counted
  void report_max(std::string_view name, double value);
  // Mean of x [B, T, ..., N] over all but the last dimension, without padding; one report per index of that: name/0, name/1, ...
  void report_means(std::string_view name, const Var& x);
  const std::vector<Loss>& losses() const { return losses_; }
  const std::vector<Report>& reports() const { return reports_; }

  // f(x) by recompute(): what f shares, takes from shared() or adds as a loss is carried in and out, with its gradients.
  Var recomputed(const std::function<Var(const Var&)>& f, const Var& x_BTD);

 private:
  using Shared = std::vector<std::pair<std::string, Var>>;
  void check_recorded(std::string_view what, std::string_view name) const;

  const TokenTable& table_;
  bool is_training_, takes_diagnostics_, is_first_rank_;
  double loss_share_;
  Shared shared_;
  std::vector<Loss> losses_;
  std::vector<Report> reports_;
  int recomputed_depth_ = 0;  // inside how many recomputed()
};

}  // namespace weft
