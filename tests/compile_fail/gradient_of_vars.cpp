// Backward computes on tensors: there is no second derivative, and a gradient that is a Var is refused.
// expect: no matching function for call to 'weft::Grads::Grads(
#include "weft/autograd/record.h"

#ifdef WEFT_MISUSE
weft::Grads gradient(const weft::Var& dx) { return weft::Grads{dx}; }
#else
weft::Grads gradient(const weft::Var& dx) { return weft::Grads{dx.value()}; }
#endif
