// The elements of a tensor are read as one of its seven types.
// expect: no DType for this type
#include "weft/core/tensor.h"

#ifdef WEFT_MISUSE
short first(const weft::Tensor& x) { return *x.data<short>(); }
#else
float first(const weft::Tensor& x) { return *x.data<float>(); }
#endif
