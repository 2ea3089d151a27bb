#include "src/training/shards.h"

#include <map>
#include <sstream>

#include "src/training/comm_ranks.h"
#include "weft/core/dry_run.h"

namespace weft {

Shards::Shards(dist::Communicator& comm, std::vector<OptimizerParam> params, const std::vector<Bucket>& buckets)
    : comm_(comm), params_(std::move(params)) {
  for (OptimizerParam& p : params_)
    if (p.value.num_elements() > 0) p.begin = p.end = 0;
  for (const Bucket& bucket : buckets)
    for (int r = 0; r < comm.size(); ++r)
      for (const Part& part : bucket.parts[static_cast<size_t>(r)]) {
        OptimizerParam& p = params_[part.param];
        const Tensor memory = part_of(p.value, part);
        if (r != comm.rank()) {
          receives_.push_back({memory, r});
          continue;
        }
        p.begin = part.begin;
        p.end = part.begin == 0 && part.end == p.value.num_elements() ? -1 : part.end;
        for (int peer = 0; peer < comm.size(); ++peer)
          if (peer != r) sends_.push_back({memory, peer});
      }
}

std::vector<OptimizerParam> Shards::params_here() const {
  std::vector<OptimizerParam> here;
  for (size_t i = 0; i < params_.size(); ++i)
    if (!is_elsewhere(i)) here.push_back(params_[i]);
  return here;
}

std::vector<Tensor> Shards::grads_here(std::span<const Tensor> grads) const {
  std::vector<Tensor> here;
  for (size_t i = 0; i < params_.size(); ++i)
    if (!is_elsewhere(i)) here.push_back(grads[i]);
  return here;
}

void Shards::fetch_parts() {
  if (!is_dry_run()) comm_.exchange(sends_, receives_);
}

size_t Shards::param_of(std::string_view name) const {
  size_t found = params_.size(), longest = 0;
  for (size_t i = 0; i < params_.size(); ++i) {
    const std::string& param = params_[i].name;
    const bool is_its =
        name.size() > param.size() && name.starts_with(param) && name[param.size()] == '.' && param.size() >= longest;
    if (is_its) found = i, longest = param.size();
  }
  return found;
}

// A tensor of a rank's state, as a line of text: what the others need to know of it.
struct Shards::Line {
  std::string name = {};
  DType dtype = kF32;
  Shape shape = {};               // here
  int64_t param = -1, begin = 0;  // of which it is a part, from element `begin` on; -1: it is whole

  std::string text() const {
    std::string line = str(name, '\t', static_cast<int>(dtype), '\t', param, '\t', begin);
    for (int64_t size : shape.span()) line += str('\t', size);
    return line + '\n';
  }
  static Line from(const std::string& text) {
    Line line;
    std::istringstream in(text.substr(text.find('\t') + 1));
    line.name = text.substr(0, text.find('\t'));
    int dtype = 0;
    in >> dtype >> line.param >> line.begin;
    line.dtype = static_cast<DType>(dtype);
    for (int64_t size; in >> size;) line.shape.push_back(size);
    return line;
  }
};

Shards::Line Shards::line_of(const std::string& name, const Tensor& tensor) const {
  Line line{.name = name, .dtype = tensor.dtype(), .shape = tensor.shape()};
  const size_t i = param_of(name);
  if (i == params_.size() || params_[i].end < 0 || tensor.dtype() != params_[i].value.dtype()) return line;
  if (tensor.shape() == Shape{params_[i].end - params_[i].begin}) {
    line.param = static_cast<int64_t>(i);
    line.begin = params_[i].begin;
  }
  return line;
}

std::vector<Shards::Whole> Shards::whole_state(const State& mine) const {
  std::string text;
  for (const auto& [name, tensor] : mine) text += line_of(name, tensor).text();
  std::vector<Whole> all;
  std::map<std::string, size_t, std::less<>> places;  // in `all`
  const std::vector<std::string> texts = gather_texts(comm_, text, params_[0].value.device());
  for (int r = 0; r < comm_.size(); ++r) {
    std::istringstream lines(texts[static_cast<size_t>(r)]);
    size_t number = 0;
    for (std::string each; std::getline(lines, each); ++number) {
      const Line line = Line::from(each);
      const bool is_part = line.param >= 0;
      const auto [place, is_new] = places.emplace(line.name, all.size());
      if (!is_new && !is_part) continue;  // all ranks have it
      if (is_new)
        all.push_back({.name = line.name,
                       .dtype = line.dtype,
                       .shape = is_part ? params_[static_cast<size_t>(line.param)].value.shape() : line.shape});
      all[place->second].sources.push_back({r, number, line.begin, line.shape.num_elements()});
    }
  }
  return all;
}

Tensor Shards::gather(const Whole& whole, const State& mine) const {
  const int rank = comm_.rank();
  const auto& sources = whole.sources;
  if (sources.size() == 1 && sources[0].rank == 0 && sources[0].count == whole.shape.num_elements())
    return rank == 0 ? mine[sources[0].number].second : Tensor();
  Tensor all = rank == 0 ? Tensor::empty(whole.shape, whole.dtype, params_[0].value.device()) : Tensor();
  std::vector<dist::Send> sends;
  std::vector<dist::Receive> receives;
  for (const Whole::Source& source : sources) {
    if (rank == source.rank) sends.push_back({mine[source.number].second.reshape({-1}), 0});
    if (rank == 0)
      receives.push_back({all.reshape({-1}).slice(0, source.begin, source.begin + source.count), source.rank});
  }
  comm_.exchange(sends, receives);
  return all;
}

Shards::State Shards::of_here(const State& all) const {
  State here;
  for (const auto& [name, tensor] : all)
    if (const size_t i = param_of(name); i == params_.size() || !is_elsewhere(i)) here.push_back({name, tensor});
  return here;
}

}  // namespace weft
