// All ops.
#pragma once

#include "weft/ops/attention.h"
#include "weft/ops/attention_merge.h"
#include "weft/ops/depth.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/loss.h"
#include "weft/ops/matmul.h"
#include "weft/ops/norm.h"
#include "weft/ops/optim.h"
#include "weft/ops/recurrence.h"
#include "weft/ops/reduce.h"
#include "weft/ops/select.h"
#include "weft/ops/sequence.h"
