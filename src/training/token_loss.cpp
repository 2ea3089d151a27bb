#include "weft/training/token_loss.h"

namespace weft {

TokenLoss token_loss(LanguageModel& model) {
  return [&model](const Tensor& ids_BT, const Tensor& targets_BT, Tokens& tokens, double factor) {
    return model.loss(ids_BT, targets_BT, tokens, factor);
  };
}

TokenData token_data(const data::Batch& batch, bool keeps_documents_apart, int64_t first_row, Upload& upload) {
  TokenData data{.positions = upload(batch.positions),
                 .first_row = first_row,
                 .are_consecutive = are_consecutive(batch.positions)};
  data.cpu_positions = batch.positions;
  if (!keeps_documents_apart) return data;
  data.documents = upload(batch.documents);
  data.document_positions = upload(batch.document_positions);
  data.cpu_documents = batch.documents;
  data.cpu_document_positions = batch.document_positions;
  return data;
}

}  // namespace weft
