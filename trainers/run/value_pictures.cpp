#include "trainers/run/value_pictures.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <map>
#include <set>
#include <string_view>

namespace weft::train {

namespace {

// What people call a kind of value; the first whose ending fits.
struct Kind {
  std::string_view ending, title, unit, index;
};
constexpr Kind kKinds[] = {
    {"router.entropy", "Entropy of the router's choice", "nats", ""},
    {"router.load", "Share of tokens that chose an expert", "share", "expert"},
    {"router.top_probability", "Largest probability of the router", "probability", ""},
    {"entropy", "Entropy of attention weights", "nats", "head"},
    {"max_score", "Largest score", "score", "head"},
    {"first_token_mass", "Weight on the first token", "share", "head"},
    {"sink_rate", "Documents whose first token is a sink", "share", "head"},
    {"sink_mass", "Weight on the sink beside the keys", "share", "head"},
    {"value_drain", "Size of the first token's value over the mean of the others", "ratio", "value head"},
    {"mean", "Mean of the gate", "gate", "head"},
    {"saturated", "Share of the gate near 0 or 1", "share", "head"},
    {"affine.scale", "Mean scale of the weights", "scale", "head"},
    {"max_weight", "Largest depth weight", "weight", ""},
    {"weight", "Depth weights of the residual stream", "weight", "source"},
    {"max_activation", "Largest number of the state", "size", ""},
    {"max_over_median", "Largest number of the state over the median size", "ratio", ""},
    {"head_importance", "Importance of heads", "share of the layer's norm", "head"},
    {"pruned_loss", "Loss without the least important heads", "nats per token", "% of heads"},
    {"loss_without", "Loss that the heads of a layer save", "nats per token", ""},
    {"perturbation_spread", "Change of the last token's state over that of the first token's embedding", "ratio", ""},
    {"rank_residual_frobenius", "Distance of the tokens from their mean (Frobenius)", "share of their size", ""},
    {"rank_residual", "Distance of the tokens from their mean", "share of their size", ""},
    {"first_token_residual", "Distance of the tokens from the first", "share of their size", ""},
    {"last_cosine", "Cosine of the last two tokens", "cosine", ""},
    {"secondary_sinks", "Number of secondary sinks", "tokens", ""},
    {"secondary_sink.first_layer", "Secondary sinks: first layer", "layer", "token"},
    {"secondary_sink.lifetime", "Secondary sinks: number of layers", "layers", "token"},
    {"rollout", "Rollout: what tokens give to the last one", "share", "token"},
    {"flow", "Attention flow from the last token", "flow", "token"},
};

// "model.layers.2.mixer.entropy/5": family "mixer.entropy", unit "layer" 2, index 5. Absent parts are -1.
struct Name {
  std::string family, unit;
  int64_t unit_number = -1, index = -1;
};

int64_t number_in(std::string_view text) {
  int64_t value = -1;
  auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  return code == std::errc() && end == text.data() + text.size() ? value : -1;
}

Name parse(std::string_view key) {
  Name name;
  if (key.starts_with("model.")) key.remove_prefix(6);
  if (key.starts_with("embedding.")) {  // the state before the first layer
    name.family = "state";
    name.unit = "layer";
    key.remove_prefix(10);
  }
  std::string joined;  // "secondary_sink/7.lifetime": the index stands inside
  size_t slash = key.rfind('/'),
         after = std::min(key.find('.', slash == std::string_view::npos ? key.size() : slash), key.size());
  if (slash != std::string_view::npos && number_in(key.substr(slash + 1, after - slash - 1)) >= 0) {
    name.index = number_in(key.substr(slash + 1, after - slash - 1));
    joined = std::string(key.substr(0, slash)) + std::string(key.substr(after));
    key = joined;
  }
  std::string before;
  for (size_t begin = 0; begin <= key.size();) {
    size_t end = std::min(key.find('.', begin), key.size());
    std::string part(key.substr(begin, end - begin));
    begin = end + 1;
    if (name.unit_number < 0 && !before.empty() && number_in(part) >= 0) {
      name.unit_number = number_in(part);
      name.unit = before == "layers" ? "layer" : before == "routers" ? "sublayer" : before;
      if (before == "layers") name.family.clear();
      continue;
    }
    name.family += (name.family.empty() ? "" : ".") + part;
    before = part;
  }
  return name;
}

// Values of one family by (unit, index), over steps.
struct Family {
  std::string unit;
  std::map<std::pair<int64_t, int64_t>, std::map<int64_t, double>> rows;
  std::set<int64_t> steps;
};
using Families = std::vector<std::pair<std::string, Family>>;  // in the order of their first value

Family& family_of(Families& all, const std::string& name) {
  auto found = std::find_if(all.begin(), all.end(), [&](const auto& entry) { return entry.first == name; });
  return found != all.end() ? found->second : all.emplace_back(name, Family{}).second;
}

// Which layers are left out of rollout and flow is said in words.
constexpr std::string_view kLeftOut = "left_out_of_rollout";

void add(Families& all, const NamedValues& values, int64_t step) {
  for (const auto& [key, value] : values) {
    Name name = parse(key);
    if (name.family == kLeftOut) continue;
    Family& family = family_of(all, name.family);
    if (!name.unit.empty()) family.unit = name.unit;
    family.rows[{name.unit_number, name.index}][step] = value;
    family.steps.insert(step);
  }
}

Kind kind_of(std::string_view family) {
  for (const Kind& kind : kKinds)
    if (family == kind.ending ||
        (family.ends_with(kind.ending) && family[family.size() - kind.ending.size() - 1] == '.'))
      return kind;
  return {family, family, "value", "index"};
}

// "Entropy of attention weights (mixer.entropy)".
std::string title_of(const std::string& family) {
  Kind kind = kind_of(family);
  return kind.title == family ? family : fmt::format("{} ({})", kind.title, family);
}

std::string unit_name(const Family& family, int64_t unit) {
  if (unit >= 0) return fmt::format("{} {}", family.unit, unit);
  return family.unit == "layer" ? "embedding" : "model";
}

std::string row_name(const std::string& name, const Family& family, std::pair<int64_t, int64_t> row) {
  std::string index_word(kind_of(name).index);
  std::string text = row.first >= 0 || !family.unit.empty() ? unit_name(family, row.first) : "";
  if (row.second >= 0 && !index_word.empty())
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", index_word, row.second);
  return text.empty() ? name : text;
}

double value_at(const std::map<int64_t, double>& points, int64_t step) {
  auto found = points.find(step);
  return found == points.end() ? std::nan("") : found->second;
}

constexpr size_t kMaxCurves = 8;

io::Plot curves_of_rows(const std::string& name, const Family& family) {
  io::Plot plot{.title = title_of(name), .x_label = "step", .y_label = std::string(kind_of(name).unit)};
  for (const auto& [row, points] : family.rows)
    plot.series.push_back({row_name(name, family, row), {points.begin(), points.end()}});
  return plot;
}

// Per unit the mean over its heads; empty where there is one unit or too many.
io::Plot curves_of_means(const std::string& name, const Family& family) {
  std::map<int64_t, std::map<int64_t, std::pair<double, int>>> sums;
  for (const auto& [row, points] : family.rows)
    for (auto [step, value] : points) {
      auto& sum = sums[row.first][step];
      sum.first += value, ++sum.second;
    }
  io::Plot plot{.title = fmt::format("{}, mean over {}s", title_of(name), kind_of(name).index),
                .x_label = "step",
                .y_label = std::string(kind_of(name).unit)};
  for (const auto& [unit, points] : sums) {
    io::PlotSeries series{.name = unit_name(family, unit)};
    for (const auto& [step, sum] : points) series.points.emplace_back(step, sum.first / sum.second);
    plot.series.push_back(std::move(series));
  }
  if (plot.series.size() > 2 * kMaxCurves) plot.series.clear();
  return plot;
}

io::HeatMap map_of_rows(const std::string& name, const Family& family) {
  io::HeatMap map{.title = fmt::format("{}: {}", title_of(name), kind_of(name).unit), .x_label = "step", .y_label = ""};
  for (int64_t step : family.steps) map.x.push_back(static_cast<double>(step));
  for (const auto& [row, points] : family.rows) {
    map.rows.push_back(row_name(name, family, row));
    std::vector<double>& values = map.values.emplace_back();
    for (int64_t step : family.steps) values.push_back(value_at(points, step));
  }
  return map;
}

// Curves where they can be told apart, otherwise colours and the means of layers. What is said once per token goes to the tables of an
// analysis only.
void add_pictures(const std::string& name, const Family& family, std::vector<io::Picture>& out) {
  if (family.rows.size() <= kMaxCurves) return out.push_back(curves_of_rows(name, family)), void();
  bool is_per_head = family.rows.begin()->first.second >= 0 && family.rows.begin()->first.first >= 0;
  if (io::Plot means = curves_of_means(name, family); is_per_head && !means.series.empty())
    out.push_back(std::move(means));
  out.push_back(map_of_rows(name, family));
}

io::ReportSection section_of(const std::vector<io::MetricsRecord>& records, const std::string& kind,
                             const std::string& heading, const std::string& text) {
  Families all;
  for (const io::MetricsRecord& record : records)
    if (record.kind == kind) add(all, record.values, record.step);
  io::ReportSection section{.heading = heading, .text = text};
  for (const auto& [name, family] : all) add_pictures(name, family, section.pictures);
  return section;
}

// Of one analysis: layers against heads as colours, everything else as curves.
io::Picture picture_of(const std::string& name, const Family& family) {
  const int64_t step = *family.steps.begin();
  const Kind kind = kind_of(name);
  std::set<int64_t> units, indices;
  for (const auto& [row, points] : family.rows) units.insert(row.first), indices.insert(row.second);
  if (units.size() > 1 && indices.size() > 1) {
    io::HeatMap map{.title = fmt::format("{}: {}", title_of(name), kind.unit), .x_label = std::string(kind.index)};
    for (int64_t index : indices) map.x.push_back(static_cast<double>(index));
    for (int64_t unit : units) {
      map.rows.push_back(unit_name(family, unit));
      std::vector<double>& values = map.values.emplace_back();
      for (int64_t index : indices) {
        auto found = family.rows.find({unit, index});
        values.push_back(found == family.rows.end() ? std::nan("") : value_at(found->second, step));
      }
    }
    return map;
  }
  const bool is_over_index = indices.size() > 1;
  io::Plot plot{.title = title_of(name),
                .x_label = is_over_index        ? std::string(kind.index)
                           : *units.begin() < 0 ? family.unit + " (-1: the embedding)"
                                                : family.unit,
                .y_label = std::string(kind.unit)};
  io::PlotSeries series{.name = is_over_index && *units.begin() >= 0 ? unit_name(family, *units.begin()) : name};
  for (const auto& [row, points] : family.rows)
    series.points.emplace_back(static_cast<double>(is_over_index ? row.second : row.first), value_at(points, step));
  plot.series.push_back(std::move(series));
  return plot;
}

// Columns of the same width; as many per line as a terminal takes.
std::string table_text(const std::string& corner, const std::vector<std::string>& columns,
                       const std::vector<std::pair<std::string, std::vector<double>>>& rows) {
  constexpr size_t kLine = 100;
  size_t first = corner.size(), width = 8;
  for (const auto& [name, values] : rows) first = std::max(first, name.size());
  for (const std::string& column : columns) width = std::max(width, column.size());
  const size_t per_line = std::max<size_t>(1, (kLine - std::min(first, kLine)) / (width + 2));
  std::string text;
  for (size_t begin = 0; begin < columns.size(); begin += per_line) {
    const size_t end = std::min(columns.size(), begin + per_line);
    text += fmt::format("  {:<{}}", corner, first);
    for (size_t c = begin; c < end; ++c) text += fmt::format("  {:>{}}", columns[c], width);
    text += "\n";
    for (const auto& [name, values] : rows) {
      text += fmt::format("  {:<{}}", name, first);
      for (size_t c = begin; c < end; ++c)
        text += fmt::format("  {:>{}}", std::isnan(values[c]) ? "-" : fmt::format("{:.4g}", values[c]), width);
      text += "\n";
    }
  }
  return text;
}

// Layers down, heads across; of many tokens the largest.
std::string indexed_table(const std::string& name, const Family& family) {
  constexpr size_t kMaxRanked = 16;
  const int64_t step = *family.steps.begin();
  std::set<int64_t> units, indices;
  for (const auto& [row, points] : family.rows) units.insert(row.first), indices.insert(row.second);
  std::string text = title_of(name) + "\n";
  if (units.size() == 1 && indices.size() > kMaxRanked) {
    std::vector<std::pair<double, int64_t>> ranked;
    for (const auto& [row, points] : family.rows) ranked.emplace_back(value_at(points, step), row.second);
    std::stable_sort(ranked.begin(), ranked.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    ranked.resize(8);
    text += fmt::format("  the largest 8 of {}:", indices.size());
    for (auto [value, index] : ranked) text += fmt::format("  {} {}: {:.4g}", kind_of(name).index, index, value);
    return text + "\n";
  }
  std::vector<std::string> columns;
  std::vector<std::pair<std::string, std::vector<double>>> rows;
  for (int64_t index : indices) columns.push_back(fmt::format("{}", index));
  for (int64_t unit : units) {
    auto& row = rows.emplace_back(unit < 0 ? std::string() : fmt::format("{}", unit), std::vector<double>{});
    for (int64_t index : indices) {
      auto found = family.rows.find({unit, index});
      row.second.push_back(found == family.rows.end() ? std::nan("") : value_at(found->second, step));
    }
  }
  const std::string index_word(kind_of(name).index);
  return text + table_text(family.unit.empty() ? index_word : family.unit + " \\ " + index_word, columns, rows);
}

}  // namespace

std::vector<io::ReportSection> value_sections(const std::vector<io::MetricsRecord>& records) {
  std::vector<io::ReportSection> sections{
      section_of(records, "diagnostics", "Diagnostics",
                 "What layers say of themselves in the first micro-batch of a step (log.diagnostics_every), as means "
                 "over tokens."),
      section_of(
          records, "analysis", "Analyses",
          "The model on the first validation rows (log.analysis_every): heads, collapse, sinks, rollout and flow.")};
  std::erase_if(sections, [](const io::ReportSection& section) { return section.pictures.empty(); });
  return sections;
}

std::vector<io::HeatMap> head_maps(const std::vector<io::MetricsRecord>& records) {
  Families all;
  for (const io::MetricsRecord& record : records)
    if (record.kind == "diagnostics") add(all, record.values, record.step);
  std::vector<io::HeatMap> maps;
  for (const auto& [name, family] : all)
    if (family.unit == "layer" && family.rows.begin()->first.second >= 0 && kind_of(name).index.ends_with("head"))
      maps.push_back(map_of_rows(name, family));
  return maps;
}

std::vector<io::Picture> value_pictures(const NamedValues& values) {
  Families all;
  add(all, values, 0);
  std::vector<io::Picture> pictures;
  for (const auto& [name, family] : all)
    if (family.rows.size() > 1) pictures.push_back(picture_of(name, family));
  return pictures;
}

std::vector<io::Picture> loss_pictures(const std::vector<LengthLosses>& lengths) {
  constexpr const char* kUnit = "nats per token";
  io::PlotSeries losses{.name = "validation loss"};
  io::Plot by_seen{.title = "Loss by position", .x_label = "tokens that the model has seen", .y_label = kUnit};
  std::vector<const LengthLosses*> ascending;
  for (const LengthLosses& one : lengths) ascending.push_back(&one);
  std::ranges::stable_sort(ascending, {}, [](const LengthLosses* one) { return one->length; });
  for (const LengthLosses* one : ascending) {
    if (std::isfinite(one->loss)) {
      losses.points.emplace_back(static_cast<double>(one->length), one->loss);
      const double by = std::isfinite(one->standard_error) ? one->standard_error : 0;
      losses.band.emplace_back(one->loss - by, one->loss + by);
    }
    if (one->by_seen.size() > 1) by_seen.series.push_back({fmt::format("length {}", one->length), one->by_seen});
  }
  std::vector<io::Picture> pictures;
  if (losses.points.size() > 1)
    pictures.emplace_back(io::Plot{.title = "Loss by length of the rows, and its standard error",
                                   .x_label = "tokens of a row",
                                   .y_label = kUnit,
                                   .series = {std::move(losses)}});
  if (!by_seen.series.empty()) pictures.emplace_back(std::move(by_seen));
  return pictures;
}

std::string value_tables(const NamedValues& values) {
  Families all;
  add(all, values, 0);
  std::string text, single;
  std::vector<std::string> columns;                           // kinds that have one value per layer
  std::map<int64_t, std::map<std::string, double>> per_unit;  // -1: the embedding, or the whole model
  std::string unit;
  for (const auto& [name, family] : all) {
    const auto& [row, points] = *family.rows.begin();
    if (row.second >= 0) {
      text += indexed_table(name, family) + "\n";
    } else if (family.unit.empty()) {
      single += fmt::format("{:<48} {:.4g}\n", name, points.begin()->second);
    } else {
      columns.push_back(name);
      unit = family.unit;
      for (const auto& [at, value] : family.rows) per_unit[at.first][name] = value.begin()->second;
    }
  }
  if (!columns.empty()) {
    std::vector<std::pair<std::string, std::vector<double>>> rows;
    for (const auto& [number, row] : per_unit) {
      auto& line = rows.emplace_back(number < 0 ? "embedding" : fmt::format("{}", number), std::vector<double>{});
      for (const std::string& column : columns)
        line.second.push_back(row.contains(column) ? row.at(column) : std::nan(""));
    }
    for (std::string& column : columns) column = column.substr(column.rfind('.') + 1);
    text += "States behind the layers\n" + table_text(unit, columns, rows) + "\n";
  }
  std::string left_out;
  for (const auto& [key, value] : values)
    if (const Name name = parse(key); name.family == kLeftOut)
      left_out += fmt::format("{} {}", left_out.empty() ? "" : ",", name.unit_number);
  if (!left_out.empty()) single += "Rollout and flow leave out layers" + left_out + ": their mixers show no weights\n";
  return text + single;
}

}  // namespace weft::train
