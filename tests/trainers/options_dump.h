// Options of the library as text, every field of every struct, so that a comparison of two forgets none.
#pragma once

#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "trainers/config/translate.h"
#include "weft/nn/residual.h"

namespace weft::train::test {

template <class T>
constexpr bool kIsOptional = false;
template <class T>
constexpr bool kIsOptional<std::optional<T>> = true;

// Stands for a value of any type, to find out how many a struct is made of. An optional takes it as its content.
struct Anything {
  template <class T>
  requires(!kIsOptional<T>) operator T() const;  // NOLINT: never called
};
template <class T, class... Fields>
constexpr size_t num_fields() {
  if constexpr (requires { T{Fields{}..., Anything{}}; }) return num_fields<T, Fields..., Anything>();
  else return sizeof...(Fields);
}

// f(each field of the struct). A wrong count does not compile.
template <class T, class F>
auto with_fields(const T& o, F f) {
  constexpr size_t kCount = num_fields<T>();
  static_assert(kCount >= 1 && kCount <= 24, "write down the bindings of more fields");
  if constexpr (kCount == 1) {
    const auto& [a] = o;
    return f(a);
  }
  if constexpr (kCount == 2) {
    const auto& [a, b] = o;
    return f(a, b);
  }
  if constexpr (kCount == 3) {
    const auto& [a, b, c] = o;
    return f(a, b, c);
  }
  if constexpr (kCount == 4) {
    const auto& [a, b, c, d] = o;
    return f(a, b, c, d);
  }
  if constexpr (kCount == 5) {
    const auto& [a, b, c, d, e] = o;
    return f(a, b, c, d, e);
  }
  if constexpr (kCount == 6) {
    const auto& [a, b, c, d, e, g] = o;
    return f(a, b, c, d, e, g);
  }
  if constexpr (kCount == 7) {
    const auto& [a, b, c, d, e, g, h] = o;
    return f(a, b, c, d, e, g, h);
  }
  if constexpr (kCount == 8) {
    const auto& [a, b, c, d, e, g, h, i] = o;
    return f(a, b, c, d, e, g, h, i);
  }
  if constexpr (kCount == 9) {
    const auto& [a, b, c, d, e, g, h, i, j] = o;
    return f(a, b, c, d, e, g, h, i, j);
  }
  if constexpr (kCount == 10) {
    const auto& [a, b, c, d, e, g, h, i, j, k] = o;
    return f(a, b, c, d, e, g, h, i, j, k);
  }
  if constexpr (kCount == 11) {
    const auto& [a, b, c, d, e, g, h, i, j, k, l] = o;
    return f(a, b, c, d, e, g, h, i, j, k, l);
  }
  if constexpr (kCount == 12) {
    const auto& [a, b, c, d, e, g, h, i, j, k, l, m] = o;
    return f(a, b, c, d, e, g, h, i, j, k, l, m);
  }
  if constexpr (kCount == 13) {
    const auto& [a, b, c, d, e, g, h, i, j, k, l, m, n] = o;
    return f(a, b, c, d, e, g, h, i, j, k, l, m, n);
  }
  if constexpr (kCount == 14) {
    const auto& [a, b, c, d, e, g, h, i, j, k, l, m, n, p] = o;
    return f(a, b, c, d, e, g, h, i, j, k, l, m, n, p);
  }
  if constexpr (kCount == 15) {
    const auto& [a, b, c, d, e, g, h, i, j, k, l, m, n, p, q] = o;
    return f(a, b, c, d, e, g, h, i, j, k, l, m, n, p, q);
  }
  if constexpr (kCount == 16) {
    const auto& [a, b, c, d, e, g, h, i, j, k, l, m, n, p, q, r] = o;
    return f(a, b, c, d, e, g, h, i, j, k, l, m, n, p, q, r);
  }
  if constexpr (kCount == 17) {
    const auto& [a, b, c, d, e, g, h, i, j, k, l, m, n, p, q, r, s] = o;
    return f(a, b, c, d, e, g, h, i, j, k, l, m, n, p, q, r, s);
  }
  if constexpr (kCount == 18) {
    const auto& [a, b, c, d, e, g, h, i, j, k, l, m, n, p, q, r, s, t] = o;
    return f(a, b, c, d, e, g, h, i, j, k, l, m, n, p, q, r, s, t);
  }
  if constexpr (kCount == 19) {
    const auto& [a, b, c, d, e, g, h, i, j, k, l, m, n, p, q, r, s, t, u] = o;
    return f(a, b, c, d, e, g, h, i, j, k, l, m, n, p, q, r, s, t, u);
  }
  if constexpr (kCount == 20) {
    const auto& [a, b, c, d, e, g, h, i, j, k, l, m, n, p, q, r, s, t, u, v] = o;
    return f(a, b, c, d, e, g, h, i, j, k, l, m, n, p, q, r, s, t, u, v);
  }
  if constexpr (kCount == 21) {
    const auto& [a, b, c, d, e, g, h, i, j, k, l, m, n, p, q, r, s, t, u, v, w] = o;
    return f(a, b, c, d, e, g, h, i, j, k, l, m, n, p, q, r, s, t, u, v, w);
  }
  if constexpr (kCount == 22) {
    const auto& [a, b, c, d, e, g, h, i, j, k, l, m, n, p, q, r, s, t, u, v, w, x] = o;
    return f(a, b, c, d, e, g, h, i, j, k, l, m, n, p, q, r, s, t, u, v, w, x);
  }
  if constexpr (kCount == 23) {
    const auto& [a, b, c, d, e, g, h, i, j, k, l, m, n, p, q, r, s, t, u, v, w, x, y] = o;
    return f(a, b, c, d, e, g, h, i, j, k, l, m, n, p, q, r, s, t, u, v, w, x, y);
  }
  if constexpr (kCount == 24) {
    const auto& [a, b, c, d, e, g, h, i, j, k, l, m, n, p, q, r, s, t, u, v, w, x, y, z] = o;
    return f(a, b, c, d, e, g, h, i, j, k, l, m, n, p, q, r, s, t, u, v, w, x, y, z);
  }
}

template <class T>
std::string dump(const T& value);
template <class T>
std::string dump(const std::vector<T>& values);
template <class T>
std::string dump(const std::optional<T>& value);
template <class... T>
std::string dump(const std::variant<T...>& value);
// What the maker was made from. One of a program's own is called, which its row sees.
std::string dump(const MixerMaker& make);
std::string dump(const ResidualMaker& make);
inline std::string dump(const NormMaker& make) { return make ? (make({.dim = 64}, Rng(1)), "own") : "none"; }
inline std::string dump(const FfnMaker& make) { return make ? (make({.dim = 64}, Rng(1)), "own") : "none"; }
inline std::string dump(const HeadMixtureMaker& make) {
  return make ? (make({.dim = 64, .heads = 4, .head_dim = 16}, Rng(1)), "own") : "none";
}
inline std::string dump(const OwnAttention& attention) { return attention ? "own" : "none"; }

template <class T>
std::string dump(const std::vector<T>& values) {
  std::string out = "[";
  for (const T& value : values) out += dump(value) + " ";
  return out + "]";
}

template <class T>
std::string dump(const std::optional<T>& value) {
  return value ? dump(*value) : "none";
}

template <class... T>
std::string dump(const std::variant<T...>& value) {
  return str("#", value.index(), std::visit([](const auto& v) { return dump(v); }, value));
}

template <size_t I = 0>
std::string dump_maker(const MixerMaker& make) {
  if constexpr (I == std::variant_size_v<MixerOptions>) {
    make({.dim = 64, .context = 32}, Rng(1));
    return "custom";
  } else {
    const auto* o = make.target<std::variant_alternative_t<I, MixerOptions>>();
    return o ? str("#", I, dump(*o)) : dump_maker<I + 1>(make);
  }
}
inline std::string dump(const MixerMaker& make) { return dump_maker(make); }
inline std::string dump(const ResidualMaker& make) {
  if (const auto* o = make.target<RoutedResidualOptions>()) return dump(*o);
  if (make.target<StandardResidualOptions>()) return "standard";
  make({.dim = 64, .sublayers = 8}, Rng(1));
  return "own";
}

template <class T>
std::string dump(const T& value) {
  if constexpr (std::is_same_v<T, std::string>) return "'" + value + "'";
  else if constexpr (std::is_enum_v<T>) return str("enum ", static_cast<int>(value));
  else if constexpr (std::is_arithmetic_v<T>) return str(value);
  else
    return with_fields(value, [](const auto&... each) {
      std::string out = "{";
      ((out += dump(each) + ", "), ...);
      return out + "}";
    });
}

// All that a resolved config becomes before anything runs.
inline std::string dump_all(const config::Loaded& config, int64_t vocab) {
  const config::Experiment& e = config.experiment;
  return str(dump(model_options(config, vocab)), "\n", dump(param_groups(e)), "\n", dump(schedule_options(e)), "\n",
             dump(compute_dtype(e)), "\n", dump(attention_backend(e)), "\n", dump(step_sizes(e)), "\n",
             dump(parallel_options(e)), "\n", dump(start_options(e)), "\n",
             e.data().has_task() ? dump(recall_options(e.data().task())) : "texts", "\n");
}

}  // namespace weft::train::test
