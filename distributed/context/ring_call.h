// A call over the tokens of the ranks of a ring: the loop of travel.h with the core as its work.
#pragma once

#include "distributed/context/call.h"
#include "distributed/context/travel.h"

namespace weft::dist {

struct Ring {
  RingRanks ranks;
  Route route;  // of keys
  HopPlan plan;
  int64_t heads_at_once = 0;    // key/value heads of a part; 0: all
  bool queries_travel = false;  // in backward
};

struct CallGrads {
  QueryGrads queries;
  KeyGrads keys;
};

ops::Attention attend_over(const Ring& ring, const Call& call);  // out in f32 (f64 for f64) if there are several ranks
CallGrads backward_over(const Ring& ring, const Call& call);
ops::AttentionStatistics statistics_over(const Ring& ring, const Call& call);  // column mass of this rank's keys

}  // namespace weft::dist
