// Wrong on purpose: a layer that calls kernels, another layer's internals, and a path that names no layer.
#include "weft/core/tensor.h"
#include "weft/ops/matmul.h"
#include "autograd/internal/node_header.h"
#include "tokens.h"
