#include "weft/nn/module.h"

#include <algorithm>

#include "weft/autograd/functions.h"
#include "weft/core/error.h"

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

Param::Param(Tensor value) : master_(std::move(value)), leaf_(variable(master_, "parameter")) {
  WEFT_CHECK(master_.is_contiguous(), str("Param: ", master_, " is a strided view"), "give a row-major tensor");
  PartWatch::add(this, master_, "Param");
}

Param::~Param() { PartWatch::remove(this); }

Buffer::Buffer(Tensor value, double decay) : value_(std::move(value)), decay_(decay) {
  PartWatch::add(this, value_, "Buffer");
}

Buffer::~Buffer() { PartWatch::remove(this); }

void Param::set_value(const Tensor& value) {
  WEFT_CHECK(value.shape() == master_.shape(), str("Param: value ", value, " for ", master_), "keep the shape");
  assign(master_, value);
  refresh_working();
}

void Param::refresh_working() {
  if (working_.defined()) assign(working_, master_);
}

void Param::set_compute(DType compute) {
  WEFT_CHECK(compute == kF32 || compute == kBF16 || compute == kF64, str("set_compute: ", compute),
             "use f32, bf16 or f64");
  NoGrad no_grad;
  MemoryTag tag("parameters");
  DType master = compute == kF64 ? kF64 : kF32;
  if (master_.dtype() != master) master_ = cast(Var(master_), master).value();
  working_ = compute == kBF16 && master_.num_dims() >= 2 ? cast(Var(master_), kBF16).value() : Tensor();
  leaf_.set_grad({});
  leaf_.set_value(working_.defined() ? working_ : master_);
}

void Buffer::set_value(const Tensor& value) {
  WEFT_CHECK(value.shape() == value_.shape(), str("Buffer: value ", value, " for ", value_), "keep the shape");
  assign(value_, value);
}

void Buffer::add(const Tensor& sum, const Tensor& count) {
  WEFT_CHECK(sum.shape() == value_.shape(), str("Buffer: sum ", sum, " for ", value_),
             "add sums of the buffer's shape");
  WEFT_CHECK(count.num_elements() == 1, str("Buffer: count ", count), "give one number");
  auto collect = [](Tensor& all, const Tensor& part) {
    Tensor more = cast(Var(part), kF64).value();
    all = all.defined() ? weft::add(all, more).value() : more;
  };
  collect(sum_, sum);
  collect(count_, count.reshape({}));
}

void Buffer::update() {
  if (!sum_.defined()) return;
  auto number = [&](double x) { return Tensor::full({}, x, kF64, value_.device()); };
  Var before = cast(Var(value_), kF64), next = before * decay_ + Var(sum_) * (Var(number(1 - decay_)) / count_);
  assign(value_, where(equal(count_, number(0)), before, next).value());
  discard();
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

int64_t Module::num_params() const {
  int64_t count = 0;
  for (const NamedParam& p : params()) count += p.param->value().num_elements();
  return count;
}

void Module::set_compute(DType compute) {
  for (NamedParam& p : params()) p.param->set_compute(compute);
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
