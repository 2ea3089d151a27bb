// Wrong on purpose: a kernel that knows autograd. The layer check must refuse it.
#include "weft/autograd/var.h"
