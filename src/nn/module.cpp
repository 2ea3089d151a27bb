#include "weft/nn/module.h"

#include <algorithm>

#include "weft/core/error.h"
#include "weft/core/pattern.h"

namespace weft {

namespace {
thread_local PartWatch* innermost_watch = nullptr;
}

PartWatch::PartWatch() : outer_(innermost_watch) { innermost_watch = this; }

// What was made in an inner watch was made in the outer one too.
PartWatch::~PartWatch() {
  innermost_watch = outer_;
  if (outer_) outer_->made_.insert(outer_->made_.end(), made_.begin(), made_.end());
}

void PartWatch::add(const void* part, const Tensor& value, const char* kind) {
  if (innermost_watch) innermost_watch->made_.push_back({part, str(kind, " ", value)});
}

void PartWatch::remove(const void* part) {
  for (PartWatch* watch = innermost_watch; watch; watch = watch->outer_)
    std::erase_if(watch->made_, [&](const Made& made) { return made.part == part; });
}

void PartWatch::check_named(const Module& module, std::string_view what) const {
  std::vector<const void*> named;
  for (const NamedParam& p : module.params()) named.push_back(p.param);
  for (const NamedBuffer& b : module.buffers()) named.push_back(b.buffer);
  for (const Made& made : made_)
    WEFT_CHECK(std::find(named.begin(), named.end(), made.part) != named.end(),
               str(what, ": its ", made.text, " is not named, so that nobody would train or save it"),
               "list it, or the module that holds it, in name_parts() of the constructor");
}

void Module::name_parts(std::initializer_list<Part> parts) {
  for (const Part& part : parts) name_part(part);
}

void Module::name_part(Part part) {
  WEFT_CHECK(!part.name.empty() &&
                 std::none_of(parts_.begin(), parts_.end(), [&](const Part& p) { return p.name == part.name; }),
             str("name_parts: '", part.name, "' is empty or given twice"), "give every part a name of its own");
  if (auto* module = std::get_if<Module*>(&part.what)) (*module)->set_name(part.name);
  parts_.push_back(std::move(part));
}

void Module::collect(const std::string& prefix, std::vector<NamedParam>* params,
                     std::vector<NamedBuffer>* buffers) const {
  for (const Part& part : parts_) {
    std::string path = prefix.empty() ? part.name : prefix + "." + part.name;
    if (auto* module = std::get_if<Module*>(&part.what)) (*module)->collect(path, params, buffers);
    else if (auto* param = std::get_if<Param*>(&part.what)) {
      if (params) params->push_back({path, *param});
    } else if (buffers) buffers->push_back({path, std::get<Buffer*>(part.what)});
  }
}

std::vector<NamedParam> Module::params() const {
  std::vector<NamedParam> params, unique;
  collect("", &params, nullptr);
  for (NamedParam& p : params)
    if (std::none_of(unique.begin(), unique.end(), [&](const NamedParam& u) { return u.param == p.param; }))
      unique.push_back(std::move(p));
  return unique;
}

std::vector<NamedBuffer> Module::buffers() const {
  std::vector<NamedBuffer> buffers;
  collect("", nullptr, &buffers);
  return buffers;
}

std::vector<NamedModule> Module::modules() const {
  std::vector<NamedModule> out;
  for (const Part& part : parts_) {
    auto* module = std::get_if<Module*>(&part.what);
    if (!module) continue;
    out.push_back({part.name, *module});
    for (const NamedModule& inner : (*module)->modules()) out.push_back({part.name + "." + inner.name, inner.module});
  }
  return out;
}

int64_t Module::num_params() const {
  int64_t count = 0;
  for (const NamedParam& p : params()) count += p.param->value().num_elements();
  return count;
}

void Module::set_compute(DType compute) {
  for (NamedParam& p : params()) p.param->set_compute(compute);
}

void Module::to(Device device) {
  for (const Part& part : parts_) std::visit([&](auto* what) { what->to(device); }, part.what);
}

void Module::set_frozen(std::string_view pattern, bool is_frozen) {
  bool has_any = false;
  for (NamedParam& p : params()) {
    if (!matches_pattern(pattern, p.name)) continue;
    p.param->set_frozen(is_frozen);
    has_any = true;
  }
  WEFT_CHECK(has_any, str("set_frozen: no parameter matches '", pattern, "'"),
             "use names of params(), with * for any text and ? for one character");
}

void Module::update_buffers() {
  for (NamedBuffer& b : buffers()) b.buffer->update();
}

void Module::discard_buffers() {
  for (NamedBuffer& b : buffers()) b.buffer->discard();
}

void Module::clear_grads() {
  for (NamedParam& p : params()) p.param->clear_grad();
}

}  // namespace weft
