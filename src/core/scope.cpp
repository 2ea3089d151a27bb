#include "weft/core/scope.h"

namespace weft {

namespace {
thread_local const Scope* innermost_scope = nullptr;
thread_local RankLabel label;
}  // namespace

Scope::Scope(std::string_view name) : name_(name), outer_(innermost_scope) { innermost_scope = this; }
Scope::~Scope() { innermost_scope = outer_; }

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
