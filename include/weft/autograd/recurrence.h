// The gated linear recurrence and the element-wise one, differentiable: see weft/ops/recurrence.h.
#pragma once

#include <array>
#include <functional>

#include "weft/autograd/var.h"
#include "weft/ops/recurrence.h"

namespace weft {

// The fields of ops::RecurrenceInput, of which those that are Vars are differentiable.
struct RecurrenceVars {
  Var q_BTGK, k_BTGK, v_BTHV;
  Var log_decay = {}, beta = {};
  Tensor writes = {};
  Var state = {};
  Tensor documents = {}, state_document = {};
  // Only for Tokens::recur_chunks, which calls it instead of recur() with tokens [B, C, ...] of one chunk and the state in front of them. `first`:
  // the state where their chunk began. {out [B, C, H, V], state behind}. Tokens that are padding are zeros.
  std::function<std::array<Var, 2>(const RecurrenceVars& some, const Var& first)> step = {};
};
// {out, state}, both differentiable.
std::array<Var, 2> recur(const RecurrenceVars& input, const ops::RecurrenceOptions& options = {});

struct DecayScanVars {
  Var x_BTD, log_decay;
  Var state = {};
  Tensor documents = {}, state_document = {};
};
// {y, state}, both differentiable.
std::array<Var, 2> decay_scan(const DecayScanVars& input);

// ops::state_documents(), for layers.
Tensor state_documents(const Tensor& documents_BT, const Tensor& before = {});

}  // namespace weft
