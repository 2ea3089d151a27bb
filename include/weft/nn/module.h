// Modules and their parameters. A module names its parts once, in its constructor; names join to paths ("layers.3.mixer.q.weight").
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "weft/core/scope.h"
#include "weft/nn/param.h"

namespace weft {

struct NamedParam {
  std::string name;
  Param* param;
};
struct NamedBuffer {
  std::string name;
  Buffer* buffer;
};
class Module;
struct NamedModule {
  std::string name;
  Module* module;
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
  std::vector<NamedModule> modules() const;  // all below this one, each behind the one that holds it
  int64_t num_params() const;                // elements
  void set_compute(DType compute);           // of every Param
  // Parameters and buffers, before an optimiser is made of them; run the module with that device as default then. A module that keeps other
  // tensors moves them too.
  virtual void to(Device device);
  // Freezes the parameters whose names match (weft/core/pattern.h), or trains them again. Error if there is none.
  void set_frozen(std::string_view pattern, bool is_frozen = true);
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
