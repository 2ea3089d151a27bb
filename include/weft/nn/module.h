// Modules and their parameters. A module names its parts once, in its constructor; names join to paths ("layers.3.mixer.q.weight").
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "weft/autograd/var.h"
#include "weft/core/scope.h"

namespace weft {

// A trained tensor. Its master value is f32 (f64 in gradient checks). Under bf16 compute a matrix has a bf16 working copy too: forward
// reads it, and each optimiser step writes it. Gradients are f32.
class Param {
 public:
  explicit Param(Tensor value);
  ~Param();
  Param(const Param&) = delete;
  Param& operator=(const Param&) = delete;

  operator const Var&() const { return leaf_; }  // NOLINT: what forward reads
  const Tensor& value() const { return master_; }
  const Tensor& working() const { return working_; }  // undefined unless compute is bf16 and this is a matrix
  const Tensor& grad() const { return leaf_.grad(); }
  void clear_grad() { leaf_.set_grad({}); }
  void set_value(const Tensor& value);  // copies `value` (converted) into the master and the working copy
  void refresh_working();               // call it after you wrote the master value directly
  void set_compute(DType compute);      // f32, bf16, or f64 (which converts the master)
  Var& var() { return leaf_; }

 private:
  Tensor master_, working_;
  Var leaf_;
};

// A running mean over optimiser steps. It is f32, has no gradient, and is named and saved like a Param. Forward reads the value of the last
// step and adds sums and counts (Tokens::accumulate). After the last micro-batch, update() sets value = decay value + (1 - decay) sum /
// count.
class Buffer {
 public:
  explicit Buffer(Tensor value, double decay = 0.9);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  const Tensor& value() const { return value_; }
  void set_value(const Tensor& value);  // converted

  // `sum` has the value's shape, `count` is one number: on the device, so that nobody waits for it.
  void add(const Tensor& sum, const Tensor& count);
  void update();                              // does nothing if no count above 0 was added
  void discard() { sum_ = {}, count_ = {}; }  // drops the sums of a step that was skipped

 private:
  Tensor value_, sum_, count_;  // the last two f64
  double decay_;
};

struct NamedParam {
  std::string name;
  Param* param;
};
struct NamedBuffer {
  std::string name;
  Buffer* buffer;
};

class Module {
 public:
  Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;
  virtual ~Module() = default;

  std::string_view name() const { return name_; }  // inside the parent; push it as a Scope in forward
  std::vector<NamedParam> params() const;          // depth first, in the order of name_parts; each once
  std::vector<NamedBuffer> buffers() const;
  int64_t num_params() const;       // elements
  void set_compute(DType compute);  // of every Param
  void clear_grads();
  void update_buffers();   // after the last micro-batch of a step
  void discard_buffers();  // instead, if the step is skipped

 protected:
  struct Part {
    Part(std::string part, Module& module) : name(std::move(part)), what(&module) {}
    Part(std::string part, Param& param) : name(std::move(part)), what(&param) {}
    Part(std::string part, Buffer& buffer) : name(std::move(part)), what(&buffer) {}
    std::string name;
    std::variant<Module*, Param*, Buffer*> what;
  };
  // Parts must live as long as this module and stay where they are (members, or held by unique_ptr).
  void name_parts(std::initializer_list<Part> parts);
  void name_part(Part part);
  void set_name(std::string name) { name_ = std::move(name); }

 private:
  void collect(const std::string& prefix, std::vector<NamedParam>* params, std::vector<NamedBuffer>* buffers) const;

  std::string name_;
  std::vector<Part> parts_;
};

// Notes every Param and Buffer that this thread makes while it exists. With it, parts that a module forgot to name are found:
//   PartWatch watch;
//   std::unique_ptr<Mixer> mixer = make(args, rng);
//   watch.check_named(*mixer, "sink");
// The model does this for every mixer that it makes. If you call a maker yourself, do the same.
class PartWatch {
 public:
  PartWatch();
  ~PartWatch();
  PartWatch(const PartWatch&) = delete;
  PartWatch& operator=(const PartWatch&) = delete;
  // Error if one that still exists is not among the module's params() and buffers(): it would be neither trained nor saved.
  void check_named(const Module& module, std::string_view what) const;

 private:
  friend class Param;
  friend class Buffer;
  static void add(const void* part, const Tensor& value, const char* kind);
  static void remove(const void* part);

  struct Made {
    const void* part;
    std::string text;  // "Param [16, 16] f32 cpu"
  };
  std::vector<Made> made_;
  PartWatch* outer_;
};

}  // namespace weft
