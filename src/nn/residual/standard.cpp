// x + sublayer(norm(x)), and so on.
#include "weft/nn/residual.h"

namespace weft {

namespace {

class StandardStream final : public ResidualStream {
 public:
  explicit StandardStream(const Var& x) : x_(x) {}
  Var input() override { return x_; }
  void write(const Var& y) override { x_ = x_ + y; }
  Var output() override { return x_; }

 private:
  Var x_;
};

class StandardResidual final : public Residual {
 public:
  std::unique_ptr<ResidualStream> start(const Var& x_BTD, Tokens&) override {
    return std::make_unique<StandardStream>(x_BTD);
  }
  bool is_standard() const override { return true; }
};

}  // namespace

std::unique_ptr<Residual> StandardResidualOptions::operator()(const ResidualArgs&, Rng) const {
  return std::make_unique<StandardResidual>();
}

}  // namespace weft
