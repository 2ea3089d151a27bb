// The inputs of a recurrence as tensors, and as what its backward keeps of them: of one rank and over ranks.
#pragma once

#include "weft/autograd/record.h"
#include "weft/autograd/recurrence.h"

namespace weft {

inline ops::RecurrenceInput values_of(const RecurrenceVars& in) {
  return {.q_BTGK = in.q_BTGK.value(),
          .k_BTGK = in.k_BTGK.value(),
          .v_BTHV = in.v_BTHV.value(),
          .log_decay = in.log_decay.value(),
          .beta = in.beta.value(),
          .writes = in.writes,
          .state = in.state.value(),
          .documents = in.documents,
          .state_document = in.state_document};
}

// Inputs in the order of the gradients.
inline Inputs inputs_of(const RecurrenceVars& in) {
  return {in.q_BTGK, in.k_BTGK, in.v_BTHV, in.log_decay, in.beta, in.state};
}
inline ops::RecurrenceWants wants_of(Wants wants) {
  return {.q = wants[0], .k = wants[1], .v = wants[2], .log_decay = wants[3], .beta = wants[4], .state = wants[5]};
}
inline Grads grads_of(const ops::RecurrenceGrads& grads) {
  return {grads.dq, grads.dk, grads.dv, grads.dlog_decay, grads.dbeta, grads.dstate};
}

class SavedRecurrence {
 public:
  explicit SavedRecurrence(const ops::RecurrenceInput& in)
      : q_(in.q_BTGK),
        k_(in.k_BTGK),
        v_(in.v_BTHV),
        log_decay_(in.log_decay),
        beta_(in.beta),
        writes_(in.writes),
        state_(in.state),
        documents_(in.documents),
        state_document_(in.state_document) {}
  ops::RecurrenceInput get() const {  // Error if one was changed
    return {.q_BTGK = q_,
            .k_BTGK = k_,
            .v_BTHV = v_,
            .log_decay = log_decay_,
            .beta = beta_,
            .writes = writes_,
            .state = state_,
            .documents = documents_,
            .state_document = state_document_};
  }

 private:
  Saved q_, k_, v_, log_decay_, beta_, writes_, state_, documents_, state_document_;
};

}  // namespace weft
