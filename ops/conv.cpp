// Causal depthwise convolution: checks, then kernels over tokens.
#include "ops/cpu/conv.h"

#include "ops/cuda/conv.h"
#include "ops/norm_input.h"
#include "ops/row_sums.h"
#include "src/core/cuda_build.h"
#include "weft/ops/sequence.h"

namespace weft::ops {

namespace {

using cpu::Isa;

// x [B, T, D] as kernels read it: any strides of batch and token, contiguous channels.
Tensor with_contiguous_channels(const Tensor& x) { return x.size(2) <= 1 || x.strides()[2] == 1 ? x : contiguous(x); }

// Checks everything but dy, and keeps what the kernels' arguments point to.
struct Conv {
  Tensor x, weight, documents;  // weight [W, D], in the type that is computed in

  Conv(const Tensor& x_BTD, const Tensor& weight_DW, const Tensor& documents_BT, std::string_view op) {
    check_floating_rows(x_BTD, "x", op);
    WEFT_CHECK(x_BTD.num_dims() == 3, str(op, ": x is ", x_BTD), "pass x as [B, T, D]");
    DType statistics = statistics_dtype(x_BTD);
    WEFT_CHECK(weight_DW.defined() && weight_DW.num_dims() == 2 && weight_DW.size(0) == x_BTD.size(2) &&
                   weight_DW.size(1) >= 1 && (weight_DW.dtype() == statistics || weight_DW.dtype() == x_BTD.dtype()) &&
                   weight_DW.device() == x_BTD.device(),
               str(op, ": weight is ", weight_DW, ", x is ", x_BTD),
               str("weight must be [", x_BTD.size(2), ", W] with W at least 1, in ", statistics, " or the dtype of x"));
    if (documents_BT.defined()) {
      WEFT_CHECK(documents_BT.dtype() == kI32 && documents_BT.shape() == (Shape{x_BTD.size(0), x_BTD.size(1)}) &&
                     documents_BT.device() == x_BTD.device(),
                 str(op, ": documents are ", documents_BT, ", x is ", x_BTD),
                 "pass documents as [B, T] i32 on the device of x, or none");
      documents = contiguous(documents_BT);
    }
    x = with_contiguous_channels(x_BTD);
    weight = contiguous(cast(weight_DW, statistics).transpose(0, 1));
  }

  template <class T, class C>
  cpu::ConvArgs<T, C> args() const {
    return {.tokens = x.size(1),
            .dim = x.size(2),
            .taps = weight.size(0),
            .x = x.data<T>(),
            .x_strides = {x.strides()[0], x.strides()[1]},
            .weight = weight.data<C>(),
            .documents = documents.defined() ? documents.data<int32_t>() : nullptr};
  }
  // Tokens as rows, for the division of work among threads.
  cpu::Rows tokens() const { return {.count = x.size(0) * x.size(1), .width = x.size(2) * weight.size(0)}; }
};

}  // namespace

Tensor causal_conv(const Tensor& x_BTD, const Tensor& weight_DW, const Tensor& bias_D, const Tensor& documents_BT) {
  Conv conv(x_BTD, weight_DW, documents_BT, "causal_conv");
  Tensor bias;
  if (bias_D.defined()) {
    DType statistics = statistics_dtype(x_BTD);
    WEFT_CHECK(bias_D.shape() == Shape{x_BTD.size(2)} &&
                   (bias_D.dtype() == statistics || bias_D.dtype() == x_BTD.dtype()) &&
                   bias_D.device() == x_BTD.device(),
               str("causal_conv: bias is ", bias_D, ", x is ", x_BTD),
               str("bias must be [", x_BTD.size(2), "] in ", statistics, " or the dtype of x"));
    bias = contiguous(cast(bias_D, statistics));
  }
  Tensor y = Tensor::empty(x_BTD.shape(), x_BTD.dtype(), x_BTD.device());
  with_floating(x_BTD, "causal_conv", [&]<class T, class C>() {
    auto args = conv.args<T, C>();
    args.bias = bias.defined() ? bias.data<C>() : nullptr;
    args.out = y.mutable_data<T>();
    if constexpr (kCuda) {
      if (y.is_cuda()) return cuda::ConvKernels<T, C>::forward(args, y.size(0), y.device());
    }
    for_rows(conv.tokens(),
             [&]<Isa I>(int64_t begin, int64_t end) { cpu::ConvKernels<I, T, C>::forward(args, begin, end); });
  });
  return y;
}

CausalConvGrads causal_conv_backward(const Tensor& dy_BTD, const Tensor& x_BTD, const Tensor& weight_DW, bool has_bias,
                                     const Tensor& documents_BT) {
  Conv conv(x_BTD, weight_DW, documents_BT, "causal_conv_backward");
  check_like(dy_BTD, "dy", x_BTD, "x", "causal_conv_backward");
  const cpu::Rows tokens = conv.tokens();
  const int64_t D = x_BTD.size(2), W = weight_DW.size(1);
  Tensor dy = with_contiguous_channels(dy_BTD);
  CausalConvGrads grads{Tensor::empty(x_BTD.shape(), x_BTD.dtype(), x_BTD.device()), {}, {}};
  with_floating(x_BTD, "causal_conv_backward", [&]<class T, class C>() {
    auto args = conv.args<T, C>();
    args.dy = dy.data<T>();
    args.dy_strides[0] = dy.strides()[0];
    args.dy_strides[1] = dy.strides()[1];
    args.out = grads.dx.mutable_data<T>();
    Tensor dweight_WD = Tensor::empty({W, D}, dtype_of<C>(), x_BTD.device());
    if (has_bias) grads.dbias = Tensor::empty({D}, dtype_of<C>(), x_BTD.device());
    if constexpr (kCuda) {
      if (dy.is_cuda()) {
        cuda::ConvKernels<T, C>::backward_input(args, dy.size(0), dy.device());
        cuda::ConvKernels<T, C>::backward_weight(args, dy.size(0), dweight_WD, grads.dbias);
        grads.dweight = contiguous(dweight_WD.transpose(0, 1));
        return;
      }
    }
    for_rows(tokens,
             [&]<Isa I>(int64_t begin, int64_t end) { cpu::ConvKernels<I, T, C>::backward_input(args, begin, end); });
    auto weight_block = [&](int64_t begin, int64_t end, C* sums) {
      C* dbias = has_bias ? sums + W * D : nullptr;
      cpu::with_isa([&]<Isa I>() { cpu::ConvKernels<I, T, C>::backward_weight(args, begin, end, sums, dbias); });
    };
    if (has_bias) sum_row_blocks<C>(tokens.count, tokens.width, {&dweight_WD, &grads.dbias}, weight_block);
    else sum_row_blocks<C>(tokens.count, tokens.width, {&dweight_WD}, weight_block);
    grads.dweight = contiguous(dweight_WD.transpose(0, 1));
  });
  return grads;
}

}  // namespace weft::ops
