#include "weft/core/scope.h"

#include "src/core/cuda_build.h"
#include "src/core/scope_watch.h"

namespace weft {

namespace {

thread_local const Scope* innermost_scope = nullptr;
thread_local RankLabel label;
thread_local ScopeWatch* of_thread = nullptr;

ScopeWatch* find_tool() {
  if constexpr (kCuda) return cuda::nvtx_watch();
  return nullptr;
}
ScopeWatch* const tool = find_tool();  // null for scopes of static objects made before

}  // namespace

Scope::Scope(std::string_view name) : name_(name), outer_(innermost_scope) {
  innermost_scope = this;
  if (is_watched()) [[unlikely]]
    begin_span(path());
}
Scope::~Scope() {
  if (is_watched()) [[unlikely]]
    end_span();
  innermost_scope = outer_;
}

bool Scope::is_watched() { return of_thread || tool; }

ScopeWatch* thread_watch() { return of_thread; }
void set_thread_watch(ScopeWatch* watch) { of_thread = watch; }

bool begin_span(const std::string& path) {
  if (of_thread) of_thread->begin(path);
  if (tool) tool->begin(path);
  return Scope::is_watched();
}

void end_span() {
  if (of_thread) of_thread->end();
  if (tool) tool->end();
}

ScopeRoot::ScopeRoot() : hidden_(innermost_scope) { innermost_scope = nullptr; }
ScopeRoot::~ScopeRoot() { innermost_scope = hidden_; }

const Scope* Scope::innermost() { return innermost_scope; }

std::string Scope::path() {
  std::string path;
  for (const Scope* scope = innermost_scope; scope; scope = scope->outer_) {
    if (scope->name_.empty()) continue;
    path = path.empty() ? std::string(scope->name_) : std::string(scope->name_) + "." + path;
  }
  return path;
}

RankLabel rank_label() { return label; }
void set_rank_label(RankLabel rank) { label = rank; }

}  // namespace weft
