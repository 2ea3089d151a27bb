#include "src/data/recall_rows.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "src/data/order.h"
#include "weft/core/error.h"

namespace weft::data::recall {

namespace {

int32_t id_below(Rng rng, int64_t bound, int64_t index) {
  return static_cast<int32_t>(rng.below(static_cast<uint64_t>(bound), static_cast<uint64_t>(index)));
}

// Groups of numbers by powers of two: 1, 2-3, 4-7, ...
int64_t octave(int64_t n) { return std::bit_width(static_cast<uint64_t>(n)) - 1; }
std::vector<std::string> octaves(const std::string& what, int64_t largest) {
  std::vector<std::string> names;
  for (int64_t from = 1; from <= largest; from *= 2)
    names.push_back(from == 1 ? str(what, " 1") : str(what, " ", from, "-", 2 * from - 1));
  return names;
}

// `count` of the numbers below `slots` in falling order of priority, drawn without replacement with the weights of `weight`: the smallest of
// exponential variables whose rates are the weights.
template <class Weight>
std::vector<int64_t> draw_slots(int64_t slots, int64_t count, Rng rng, Weight weight) {
  std::vector<double> times(static_cast<size_t>(slots));
  for (size_t j = 0; j < times.size(); ++j) {
    auto bits = rng.bits(j);
    double u = (static_cast<double>(bits[0] >> 6) * 0x1p27 + static_cast<double>(bits[1] >> 5) + 0.5) * 0x1p-53;
    times[j] = -std::log(u) / weight(static_cast<double>(j));
  }
  std::vector<int64_t> order(times.size());
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int64_t a, int64_t b) {
    return times[static_cast<size_t>(a)] < times[static_cast<size_t>(b)];
  });
  order.resize(static_cast<size_t>(count));
  return order;
}

void require_context(const char* task, int64_t context, int64_t needed) {
  WEFT_CHECK(context >= needed, str(task, ": a row of ", context, " tokens, and the task needs ", needed),
             "lengthen the row, or make the task smaller");
}

void require_range(const char* what, int64_t value, int64_t lowest, int64_t highest) {
  WEFT_CHECK(value >= lowest && value <= highest, str(what, " is ", value), str("use ", lowest, " to ", highest));
}

}  // namespace

// MQAR

void check(const MqarOptions& o, int64_t context) {
  require_range("mqar: vocab", o.vocab, 4, int64_t{1} << 24);
  require_range("mqar: pairs", o.pairs, 1, int64_t{1} << 24);
  require_range("mqar: updates", o.updates, 0, o.pairs);
  require_range("mqar: passes", o.passes, 1, int64_t{1} << 16);
  const int64_t values = o.vocab - o.vocab / 2, keys = o.vocab / 2 - 1;
  WEFT_CHECK(o.pairs <= keys && o.pairs + o.updates <= values,
             str("mqar: a vocabulary of ", o.vocab, " ids has ", std::max<int64_t>(keys, 0), " keys and ", values,
                 " values, for ", o.pairs, " pairs and ", o.updates, " updates"),
             "raise the vocabulary or lower the pairs");
  WEFT_CHECK(o.power > 0 && o.power <= 8, str("mqar: power is ", o.power), "use a number in (0, 8]; 1 is uniform");
  require_context("mqar", context, 2 * (o.pairs * o.passes + o.updates) + 2 * o.pairs);
}

std::vector<std::string> group_names(const MqarOptions& o, int64_t context) {
  if (o.updates > 0) return {"untouched", "updated"};
  return octaves("distance", context);
}

RecallRow draw(const MqarOptions& o, int64_t context, int64_t, Rng rng) {
  RecallRow row(context);
  const int64_t half = o.vocab / 2;
  const Permutation key_of(half - 1, rng["keys"]), value_of(o.vocab - half, rng["values"]);
  std::vector<int32_t> keys, values;
  std::vector<int64_t> places(static_cast<size_t>(o.pairs));  // of each key, where it got its value
  std::vector<bool> is_updated(places.size());
  for (int64_t i = 0; i < o.pairs; ++i) {
    keys.push_back(static_cast<int32_t>(1 + key_of(i)));
    values.push_back(static_cast<int32_t>(half + value_of(i)));
  }
  int64_t at = 0;
  auto write = [&](size_t pair) {
    places[pair] = at;
    row.ids[static_cast<size_t>(at++)] = keys[pair];
    row.ids[static_cast<size_t>(at++)] = values[pair];
    row.content.insert(row.content.end(), {keys[pair], values[pair]});
  };
  for (int64_t pass = 0; pass < o.passes; ++pass)
    for (size_t i = 0; i < keys.size(); ++i) write(i);
  const Permutation updated(o.pairs, rng["updated"]);
  for (int64_t i = 0; i < o.updates; ++i) {
    const auto pair = static_cast<size_t>(updated(i));
    values[pair] = static_cast<int32_t>(half + value_of(o.pairs + i));
    is_updated[pair] = true;
    write(pair);
  }
  const int64_t begin = at;
  for (int64_t t = begin; t < context && o.has_random_filler; ++t)
    row.ids[static_cast<size_t>(t)] = id_below(rng["filler"], o.vocab, t);
  const std::vector<int64_t> slots =
      draw_slots((context - begin) / 2, o.pairs, rng["slots"], [&](double j) { return std::pow(j + 1, o.power - 1); });
  for (size_t i = 0; i < slots.size(); ++i) {
    const int64_t t = begin + 2 * slots[i];
    row.ids[static_cast<size_t>(t)] = keys[i];
    row.expect(t, values[i], o.updates > 0 ? int64_t{is_updated[i]} : octave(t - places[i]));
  }
  return row;
}

// Copying

void check(const CopyOptions& o, int64_t context) {
  require_range("copy: symbols", o.symbols, 2, int64_t{1} << 24);
  require_range("copy: items", o.items, 1, int64_t{1} << 30);
  require_context("copy", context, 2 * o.items);
}

std::vector<std::string> group_names(const CopyOptions& o, int64_t) { return octaves("item", o.items); }

RecallRow draw(const CopyOptions& o, int64_t context, int64_t, Rng rng) {
  constexpr int32_t kMarker = 1, kFirst = 2;
  RecallRow row(context);
  for (int64_t i = 0; i < o.items; ++i) row.content.push_back(kFirst + id_below(rng["items"], o.symbols, i));
  const auto& items = row.content;
  const bool is_string = o.kind == CopyKind::string || o.kind == CopyKind::reversed;
  std::vector<int64_t> places(items.size());
  std::iota(places.begin(), places.end(), 0);
  if (o.kind == CopyKind::selective) {
    places = draw_slots(context - o.items, o.items, rng["places"], [](double) { return 1.0; });
    std::sort(places.begin(), places.end());
  }
  for (size_t i = 0; i < items.size(); ++i) row.ids[static_cast<size_t>(places[i])] = items[i];
  const int64_t begin = is_string ? o.items : context - o.items;
  for (int64_t i = 0; i < o.items; ++i) {
    auto item = [&](int64_t k) {
      return items[static_cast<size_t>(o.kind == CopyKind::reversed ? o.items - 1 - k : k)];
    };
    row.ids[static_cast<size_t>(begin + i)] = is_string && i > 0 ? item(i - 1) : kMarker;
    row.expect(begin + i, item(i), octave(i + 1));
  }
  return row;
}

// Induction

void check(const InductionOptions& o, int64_t context) {
  require_range("induction: symbols", o.symbols, 2, int64_t{1} << 24);
  require_context("induction", context, 4);
}

std::vector<std::string> group_names(const InductionOptions& o, int64_t context) {
  return o.repeats ? octaves("repeated token", context / 2) : octaves("distance", context);
}

RecallRow draw(const InductionOptions& o, int64_t context, int64_t, Rng rng) {
  RecallRow row(context);
  const int64_t half = context / 2;
  for (int64_t t = 0; t < context; ++t)
    row.ids[static_cast<size_t>(t)] = id_below(rng["symbols"], o.symbols, o.repeats ? t % half : t);
  if (o.repeats) {
    row.content.assign(row.ids.begin(), row.ids.begin() + half);
    for (int64_t t = half; t + 1 < context; ++t)
      row.expect(t, row.ids[static_cast<size_t>(t + 1)], octave(t - half + 1));
    return row;
  }
  const int64_t place = 1 + id_below(rng["place"], half - 1, 0);
  row.ids[static_cast<size_t>(place)] = row.ids.back() = static_cast<int32_t>(o.symbols);
  row.expect(context - 1, row.ids[static_cast<size_t>(place + 1)], octave(context - 1 - place));
  row.content = row.ids;
  return row;
}

// Needles

void check(const NeedleOptions& o, int64_t context) {
  require_range("needle: digits", o.digits, 1, 64);
  require_range("needle: needles", o.needles, 1, 64);
  require_range("needle: hops", o.hops, 0, 64);
  require_range("needle: needles and hops together", o.needles + o.hops, 1, kNeedleNoise - kNeedleWords);
  require_range("needle: vocab", o.vocab, kNeedleNoise + 8, int64_t{1} << 24);
  require_context("needle", context, o.needles * (3 + o.digits) + 5 * o.hops + 2 + o.digits);
}

std::vector<std::string> group_names(const NeedleOptions&, int64_t) {
  std::vector<std::string> names;
  for (int depth = 0; depth < 10; ++depth) names.push_back(str("depth ", depth, " of 9"));
  return names;
}

// The haystack is a fixed Markov chain in which each id has four successors, so that it is not mere noise.
RecallRow draw(const NeedleOptions& o, int64_t context, int64_t index, Rng rng) {
  constexpr int32_t kKey = 1, kVal = 2, kAsk = 3;
  struct Needle {
    std::vector<int32_t> ids;
    int64_t gap;  // before which token of the haystack it stands
  };
  RecallRow row(context);
  const Permutation word_number(kNeedleNoise - kNeedleWords, rng["words"]);
  auto word = [&](int64_t i) { return static_cast<int32_t>(kNeedleWords + word_number(i)); };
  const int64_t noise = context - (2 + o.digits) - o.needles * (3 + o.digits) - 5 * o.hops, depth = index % 10;
  std::vector<Needle> needles;
  std::vector<int32_t> answer;
  for (int64_t i = 0; i < o.needles; ++i) {  // the first is asked for
    Needle needle{{kKey, word(i), kVal}, i == 0 ? noise * depth / 9 : id_below(rng["gaps"], noise + 1, i)};
    for (int64_t d = 0; d < o.digits; ++d)
      needle.ids.push_back(kNeedleDigits + id_below(rng["digits"], 10, i * o.digits + d));
    if (i == 0) answer.assign(needle.ids.begin() + 3, needle.ids.end());
    needles.push_back(std::move(needle));
  }
  int32_t asked = word(0);
  std::vector<int64_t> later;  // places of the hops, behind the needle that they lead to
  for (int64_t h = 0; h < o.hops; ++h)
    later.push_back(needles[0].gap + id_below(rng["hops"], noise - needles[0].gap + 1, h));
  std::sort(later.begin(), later.end());
  for (int64_t h = 0; h < o.hops; ++h) {
    needles.push_back({{kKey, word(o.needles + h), kVal, kKey, asked}, later[static_cast<size_t>(h)]});
    asked = word(o.needles + h);
  }
  std::stable_sort(needles.begin(), needles.end(), [](const Needle& a, const Needle& b) { return a.gap < b.gap; });
  const int64_t states = o.vocab - kNeedleNoise;
  int32_t state = id_below(rng["haystack"], states, context);
  size_t next = 0, t = 0;
  for (int64_t n = 0; n <= noise; ++n) {
    for (; next < needles.size() && needles[next].gap == n; ++next)
      for (int32_t id : needles[next].ids) row.ids[t++] = id;
    if (n == noise) break;
    row.ids[t++] = kNeedleNoise + state;
    state = id_below(Rng(0)["haystack"][static_cast<uint64_t>(state)], states, id_below(rng["haystack"], 4, n));
  }
  for (int32_t id : {kAsk, asked, kVal}) row.ids[t++] = id;
  for (size_t d = 0; d < answer.size(); ++d) {
    row.expect(static_cast<int64_t>(t) - 1, answer[d], depth);
    if (d + 1 < answer.size()) row.ids[t++] = answer[d];
  }
  row.content = answer;
  row.content.push_back(word(0));
  return row;
}

// State tracking

int64_t num_elements(const StateOptions& o) {
  if (o.kind == StateKind::sum) return o.size;
  int64_t elements = 1;
  for (int64_t k = 2; k <= o.size; ++k) elements *= k;
  return elements;
}

namespace {

// The permutations of `size` things in lexicographic order.
std::vector<std::vector<int>> permutations(int64_t size) {
  std::vector<int> one(static_cast<size_t>(size));
  std::iota(one.begin(), one.end(), 0);
  std::vector<std::vector<int>> all;
  do all.push_back(one);
  while (std::next_permutation(one.begin(), one.end()));
  return all;
}

}  // namespace

void check(const StateOptions& o, int64_t context) {
  require_range("state: size", o.size, 2, o.kind == StateKind::sum ? int64_t{1} << 20 : 5);
  require_context("state", context, 1);
}

std::vector<std::string> group_names(const StateOptions&, int64_t context) { return octaves("token", context); }

RecallRow draw(const StateOptions& o, int64_t context, int64_t, Rng rng) {
  RecallRow row(context);
  const bool permutes = o.kind == StateKind::permutation;
  const auto all = permutes ? permutations(o.size) : std::vector<std::vector<int>>();
  int64_t sum = 0;
  std::vector<int> things = permutes ? all[0] : std::vector<int>();
  for (int64_t t = 0; t < context; ++t) {
    const int32_t id = id_below(rng["elements"], num_elements(o), t);
    row.ids[static_cast<size_t>(t)] = id;
    if (permutes) {
      std::vector<int> moved = things;
      for (size_t i = 0; i < things.size(); ++i)
        moved[i] = things[static_cast<size_t>(all[static_cast<size_t>(id)][i])];
      things = moved;
      sum = std::lower_bound(all.begin(), all.end(), things) - all.begin();
    } else {
      sum = (sum + id) % o.size;
    }
    row.expect(t, static_cast<int32_t>(sum), octave(t + 1));
  }
  row.content = row.ids;
  return row;
}

}  // namespace weft::data::recall
