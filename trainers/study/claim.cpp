#include "trainers/study/claim.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "trainers/config/config_error.h"
#include "trainers/config/grid.pb.h"
#include "trainers/study/grid.h"

namespace weft::study {

namespace {

using config::ConfigError;

bool is_direction(Expected e) { return e == Expected::lower || e == Expected::higher; }
// Of a difference that speaks for the claim.
double sign_of(Expected e) { return e == Expected::lower || e == Expected::at_most ? -1 : 1; }

Expected expected_of(const std::string& where, config::Expected::Value value) {
  switch (value) {
    case config::Expected::lower: return Expected::lower;
    case config::Expected::higher: return Expected::higher;
    case config::Expected::at_most: return Expected::at_most;
    case config::Expected::at_least: return Expected::at_least;
    case config::Expected::equal: return Expected::equal;
    default: break;
  }
  throw ConfigError(where + " has no expect.", "Use lower, higher, at_most, at_least or equal.");
}

Claim claim_of(const Grid& grid, const config::Claim& in) {
  const std::string where = str(grid.file, ": claim \"", in.title(), "\"");
  for (const auto& [name, text] : {std::pair("title", &in.title()), {"text", &in.text()}, {"metric", &in.metric()}})
    if (text->empty() || text->find_first_of("\n|") != std::string::npos)
      throw ConfigError(str(where, ": ", name, text->empty() ? " is not set." : " has a line end or a |."),
                        "Every claim has a title, a text and a metric, each on one line without |.");
  if (in.part() == config::ClaimPart::unset)
    throw ConfigError(where + " has no part.", "Use one of " + config::join(claim_parts(), ", ") + ".");
  Claim claim{.title = in.title(),
              .text = in.text(),
              .part = config::ClaimPart::Value_Name(in.part()),
              .metric = in.metric(),
              .papers = {},
              .contrasts = {},
              .expected = expected_of(where, in.expect()),
              .effect = in.effect(),
              .is_relative = in.relative()};
  if (!(claim.effect > 0 && std::isfinite(claim.effect)))
    throw ConfigError(str(where, ": effect is ", claim.effect, "."),
                      "Say before the runs how large a difference would be worth the claim: a number above 0.");
  for (const config::Paper& paper : in.paper()) {
    for (const std::string* text : {&paper.id(), &paper.number(), &paper.size(), &paper.tokens(), &paper.tokenizer()})
      if (text->find_first_of("\n|") != std::string::npos)
        throw ConfigError(str(where, ": paper ", paper.id(), " has a line end or a |."), "Leave it out.");
    claim.papers.push_back({paper.id(), paper.number(), paper.size(), paper.tokens(), paper.tokenizer()});
  }
  for (const config::Contrast& contrast : in.contrast()) {
    const Contrast names{full_name(grid, where + ": contrast: arm", contrast.arm()),
                         full_name(grid, where + ": contrast: baseline", contrast.baseline())};
    if (names.arm == names.baseline)
      throw ConfigError(str(where, " compares ", names.arm, " with itself."), "Name two arms of the grid.");
    claim.contrasts.push_back(names);
  }
  if (claim.papers.empty() || claim.contrasts.empty())
    throw ConfigError(str(where, " has ", claim.papers.size(), " papers and ", claim.contrasts.size(), " contrasts."),
                      "Write paper { id: \"..\" number: \"..\" } and contrast { arm: \"..\" baseline: \"..\" }.");
  return claim;
}

// Two-sided p of the mean of `shift` + `sign` x difference being 0, where it is above 0; otherwise 1.
std::optional<double> p_above_zero(const std::vector<double>& differences, double sign, double shift,
                                   const StatisticsOptions& options) {
  std::vector<double> gains, zeros(differences.size(), 0);
  for (double difference : differences) gains.push_back(shift + sign * difference);
  const Difference d = paired_difference(gains, zeros, options);
  if (!d.p) return {};
  return d.mean > 0 ? *d.p : 1;
}

std::optional<double> p_of(const Claim& claim, const std::vector<double>& differences,
                           const StatisticsOptions& options) {
  const double shift = is_direction(claim.expected) ? 0 : claim.effect;
  const auto p = p_above_zero(differences, sign_of(claim.expected), shift, options);
  if (claim.expected != Expected::equal || !p) return p;
  return std::max(*p, *p_above_zero(differences, -1, shift, options));  // both sides must hold
}

std::vector<double> differences_of(const Measured& m) {
  std::vector<double> differences;
  for (size_t s = 0; s < m.arm.size(); ++s) {
    const double share = m.baseline[s] > 0 ? m.arm[s] / m.baseline[s] - 1 : std::nan("");
    differences.push_back(m.claim->is_relative ? share : m.arm[s] - m.baseline[s]);
  }
  return differences;
}

Verdict verdict_of(const Claim& claim, const Judged& judged, double confidence) {
  const Difference& d = judged.difference;
  if (d.unpaired > 0 || !d.t_interval || !judged.holm_p) return Verdict::too_small;
  const double sign = sign_of(claim.expected), effect = claim.effect;
  const double best = std::max(sign * d.t_interval->low, sign * d.t_interval->high);
  const bool is_large = !is_direction(claim.expected) || sign * d.mean >= effect;
  if (*judged.holm_p < 1 - confidence && is_large) return Verdict::reproduced;
  const bool is_out = is_direction(claim.expected)        ? best < effect
                      : claim.expected == Expected::equal ? d.t_interval->low > effect || d.t_interval->high < -effect
                                                          : best < -effect;
  return is_out ? Verdict::not_reproduced : Verdict::too_small;
}

}  // namespace

std::vector<std::string> claim_parts() {
  std::vector<std::string> names;
  for (int value = config::ClaimPart::Value_MIN + 1; value <= config::ClaimPart::Value_MAX; ++value)
    names.push_back(config::ClaimPart::Value_Name(static_cast<config::ClaimPart::Value>(value)));
  return names;
}

std::vector<Claim> claims_of(const Grid& grid, const config::Grid& in) {
  std::vector<Claim> claims;
  std::set<std::string> titles;
  for (const config::Claim& claim : in.claim()) {
    claims.push_back(claim_of(grid, claim));
    if (!titles.insert(claim.title()).second)
      throw ConfigError(str(grid.file, ": claim \"", claim.title(), "\" stands there twice."), "Give each once.");
  }
  return claims;
}

std::string rule_text(const Claim& claim) {
  const std::string effect =
      claim.is_relative ? fmt::format("{:g} %", 100 * claim.effect) : fmt::format("{:g}", claim.effect);
  switch (claim.expected) {
    case Expected::lower: return "lower by at least " + effect;
    case Expected::higher: return "higher by at least " + effect;
    case Expected::at_most: return "not higher by more than " + effect;
    case Expected::at_least: return "not lower by more than " + effect;
    case Expected::equal: return "equal within " + effect;
  }
  return {};
}

std::string_view to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::reproduced: return "reproduced";
    case Verdict::not_reproduced: return "not reproduced";
    case Verdict::too_small: return "too small to tell";
  }
  return {};
}

std::vector<Judged> judge(std::span<const Measured> measured, double confidence) {
  const StatisticsOptions options{.confidence = confidence};
  std::vector<Judged> all;
  std::vector<double> p;
  for (const Measured& m : measured) {
    const std::vector<double> differences = differences_of(m), zeros(differences.size(), 0);
    all.push_back(
        {.difference = paired_difference(differences, zeros, options), .holm_p = p_of(*m.claim, differences, options)});
    if (all.back().holm_p) p.push_back(*all.back().holm_p);
  }
  const std::vector<double> adjusted = holm_adjusted(p);
  size_t next = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i].holm_p) all[i].holm_p = adjusted[next++];
    all[i].verdict = verdict_of(*measured[i].claim, all[i], confidence);
  }
  return all;
}

Verdict verdict_of(std::span<const Verdict> contrasts) {
  const auto has = [&](Verdict verdict) { return std::ranges::find(contrasts, verdict) != contrasts.end(); };
  if (has(Verdict::not_reproduced)) return Verdict::not_reproduced;
  return has(Verdict::too_small) || contrasts.empty() ? Verdict::too_small : Verdict::reproduced;
}

}  // namespace weft::study
