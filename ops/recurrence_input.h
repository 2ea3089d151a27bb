// What the ops of recurrences share: checks of their inputs, and where documents begin.
#pragma once

#include <string>
#include <string_view>

#include "weft/core/tensor.h"

namespace weft::ops {

std::string describe_input(const Tensor& t);  // "undefined" too
void check_tensor(std::string_view op, std::string_view name, const Tensor& t, const Shape& shape, DType dtype,
                  const Tensor& like);
// Each at most 0 and finite; not looked at on a GPU.
void check_decay(std::string_view op, const Tensor& log_decay);
void check_documents(std::string_view op, const Tensor& documents, const Tensor& state_document, const Shape& tokens,
                     const Tensor& like);
// cpu::Mark of each token as u8 [B, T]; undefined without documents.
Tensor marks_of(const Tensor& documents, const Tensor& state_document);

}  // namespace weft::ops
