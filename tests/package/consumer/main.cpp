// Adds two tensors, takes a gradient through the sum, and catches an error of the library.
#include <cstdio>
#include <string>

#include "weft/autograd/functions.h"
#include "weft/core/error.h"
#include "weft/core/tensor.h"
#include "weft/ops/elementwise.h"

int main() {
  weft::Tensor a = weft::Tensor::full({2, 3}, 1.5), b = weft::Tensor::full({2, 3}, 2.0);
  weft::Tensor c = weft::ops::add(a, b);
  if (c.data<float>()[5] != 3.5f) return 1;

  try {
    weft::ops::add(a, weft::Tensor::zeros({5}));
    return 2;
  } catch (const weft::Error& error) {
    std::string text = error.what();
    if (text.find("[2, 3]") == std::string::npos || text.find("[5]") == std::string::npos) return 3;
  }
  std::printf("sum %s\n", weft::describe(c).c_str());
}
