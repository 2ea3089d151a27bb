// What GPUs must compute to the bit as the CPU does: comparison, integers, conversions, selection, sums of whole numbers. Sizes at the edges
// of warps, blocks and tiles, views, and addresses that are not aligned.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "tests/ops/device_values.h"
#include "tests/support/random.h"
#include "weft/core/stream.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/reduce.h"
#include "weft/ops/select.h"

namespace weft {
namespace {

using namespace test;

constexpr DType kAll[] = {kF32, kBF16, kF64, kI64, kI32, kU8, kBool};
constexpr DType kFloating[] = {kF32, kBF16, kF64};

// What a test calls on tensors of one device.
using Function = std::function<Tensor(std::span<const Tensor>)>;

// The same view of the same memory, on a device: strides and offset are kept.
struct Place {
  const char* name;
  std::function<Tensor(const Tensor&)> of;  // takes a row-major tensor
};
const std::vector<Place>& places() {
  static const std::vector<Place> all = {
      {"dense", [](const Tensor& x) { return x; }},
      {"unaligned",
       [](const Tensor& x) {
         const int64_t n = x.num_elements();
         Tensor memory = Tensor::zeros({n + 1}, x.dtype(), x.device()), view = memory.slice(0, 1, n + 1);
         view = view.reshape(x.shape());
         ops::copy_(view, x);
         return view;
       }},
      {"strided",
       [](const Tensor& x) {
         if (x.num_dims() < 2) {
           Tensor memory = Tensor::zeros({x.num_elements(), 2}, x.dtype(), x.device()), view = memory.select(1, 1);
           view = view.reshape(x.shape());
           ops::copy_(view, x);
           return view;
         }
         return ops::clone(x.transpose(0, -1)).transpose(0, -1);
       }},
  };
  return all;
}

// f on every place of its inputs on the GPU against f of the dense ones on the CPU; larger ones on dense memory only.
void expect_same(const std::vector<Tensor>& inputs, const Function& f, const std::string& what) {
  Tensor want = f(inputs);
  int64_t size = 0;
  for (const Tensor& x : inputs) size += x.num_elements();
  for (const Place& place : places()) {
    if (size > 4096 && &place != &places()[0]) break;
    std::vector<Tensor> there;
    for (const Tensor& x : inputs) there.push_back(place.of(ops::to(x, Device::cuda())));
    expect_same_values(f(there), want, str(what, " ", place.name));
  }
}

// Whole numbers around 0 with many ties; for floating dtypes also what compares in its own way.
Tensor few_numbers(const Shape& shape, DType dtype, std::string_view name, bool has_specials) {
  Rng rng = Rng(seed())[name];
  std::vector<double> numbers;
  const double specials[] = {NAN, INFINITY, -INFINITY, -0.0};
  for (int64_t i = 0; i < shape.num_elements(); ++i) {
    const uint64_t pick = rng.below(20, static_cast<uint64_t>(i));
    if (dtype == kU8 || dtype == kBool) numbers.push_back(static_cast<double>(pick % 2 + (dtype == kU8) * pick));
    else if (has_specials && is_floating(dtype) && pick < 4) numbers.push_back(specials[pick]);
    else numbers.push_back(static_cast<double>(pick) - 10);
  }
  return reference::make(shape, numbers, dtype);
}

// All bits random.
Tensor integers(const Shape& shape, DType dtype, std::string_view name) {
  Rng rng = Rng(seed())[name];
  Tensor t = Tensor::empty(shape, dtype);
  with_type<int64_t, int32_t, uint8_t, bool>(dtype, "integers", [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (int64_t i = 0; i < t.num_elements(); ++i) {
      auto bits = rng.bits(static_cast<uint64_t>(i));
      uint64_t word = uint64_t{bits[0]} << 32 | bits[1];
      if constexpr (std::same_as<T, bool>) t.mutable_data<T>()[i] = (word & 1) != 0;
      else t.mutable_data<T>()[i] = static_cast<T>(word);
    }
  });
  return t;
}

Tensor indices(const Shape& shape, int64_t bound, DType dtype = kI64) {
  Rng rng = Rng(seed())["indices"];
  std::vector<double> numbers;
  for (int64_t i = 0; i < shape.num_elements(); ++i)
    numbers.push_back(static_cast<double>(rng.below(static_cast<uint64_t>(bound), static_cast<uint64_t>(i))));
  return reference::make(shape, numbers, dtype);
}

TEST(ExactOnDevices, ComparisonsAndChoicesAreTheCpus) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  for (DType dtype : kAll)
    for (auto [a, b] : std::vector<std::pair<Shape, Shape>>{
             {{}, {}}, {{0}, {0}}, {{1025}, {1025}}, {{7, 33}, {7, 1}}, {{3, 1, 5}, {4, 1}}}) {
      Tensor x = few_numbers(a, dtype, "x", true), y = few_numbers(b, dtype, "y", true);
      using Compare = Tensor (*)(const Tensor&, const Tensor&);
      using CompareNumber = Tensor (*)(const Tensor&, double);
      for (Compare f : {Compare(ops::equal), Compare(ops::not_equal), Compare(ops::less), Compare(ops::less_equal),
                        Compare(ops::greater), Compare(ops::greater_equal)})
        expect_same(
            {x, y}, [f](auto in) { return f(in[0], in[1]); }, str("comparison of ", x, " ", y));
      for (CompareNumber f :
           {CompareNumber(ops::equal), CompareNumber(ops::not_equal), CompareNumber(ops::less),
            CompareNumber(ops::less_equal), CompareNumber(ops::greater), CompareNumber(ops::greater_equal)})
        for (double number : {1.0, -0.5, 300.0, 1e30, static_cast<double>(NAN)})
          expect_same(
              {x}, [f, number](auto in) { return f(in[0], number); }, str("comparison of ", x, " with ", number));
      expect_same(
          {x}, [](auto in) { return ops::where(ops::greater(in[0], 0), 1, in[0]); }, str("where with a number ", x));
      Tensor mask = few_numbers(b, kBool, "mask", false);
      expect_same(
          {mask, x, y}, [](auto in) { return ops::where(in[0], in[1], in[2]); }, str("where ", x, " ", y));
    }
}

TEST(ExactOnDevices, ArithmeticOfIntegersWrapsAroundAsOnTheCpu) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  struct Row {
    const char* name;
    Tensor (*f)(const Tensor&, const Tensor&);
    bool takes_bool;
  };
  const Row rows[] = {{"add", ops::add, false},
                      {"sub", ops::sub, false},
                      {"mul", ops::mul, true},
                      {"maximum", ops::maximum, true},
                      {"minimum", ops::minimum, true}};
  for (const Row& row : rows)
    for (DType dtype : {kI64, kI32, kU8, kBool}) {
      if (dtype == kBool && !row.takes_bool) continue;
      for (auto [a, b] : std::vector<std::pair<Shape, Shape>>{{{1}, {1}}, {{1025}, {1025}}, {{7, 33}, {33}}}) {
        Tensor x = integers(a, dtype, "x"), y = integers(b, dtype, "y");
        expect_same(
            {x, y}, [&](auto in) { return row.f(in[0], in[1]); }, str(row.name, " ", x, " ", y));
      }
    }
}

TEST(ExactOnDevices, LargerAndSmallerOfSpecialNumbersAreTheCpus) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  for (DType dtype : kFloating) {
    Tensor x = few_numbers({1025}, dtype, "x", true), y = few_numbers({1025}, dtype, "y", true);
    // Which of 0 and -0 is larger is nobody's promise: added to 0 they are one.
    expect_same(
        {x, y}, [](auto in) { return ops::add_scalar(ops::maximum(in[0], in[1]), 0); }, str("maximum ", x));
    expect_same(
        {x, y}, [](auto in) { return ops::add_scalar(ops::minimum(in[0], in[1]), 0); }, str("minimum ", x));
  }
}

TEST(ExactOnDevices, ConversionsAreTheCpus) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  const double inf = INFINITY;
  std::vector<double> specials = {
      NAN,     inf,          -inf,          0.0,        -0.0,     0.5,      -0.5,      0.999,     1,       -1,
      1.5,     2.5,          -1.5,          254.5,      255,      255.9,    256,       -128.7,    0x1p31,  0x1p31 - 1,
      -0x1p31, 0x1p31 + 1e3, -0x1p31 - 1e3, 0x1p32,     0x1p53,   0x1p63,   -0x1p63,   1e300,     -1e300,  1e-310,
      1e-42,   0x1p-149,     3.4e38,        0x1.fep127, 0x1.01p0, 0x1.03p0, 0x1.008p0, 0x1.018p0, 1.0 / 3, -1e5};
  const auto n = static_cast<int64_t>(specials.size());
  for (DType from : kAll) {
    Tensor few = is_floating(from) ? ops::cast(reference::make({n}, specials, kF64), from) : integers({n}, from, "few");
    Tensor many = is_floating(from) ? ops::cast(ops::scale(random_normal({37, 29}, "many", kF64), 1e3), from)
                                    : integers({37, 29}, from, "many");
    for (DType to : kAll)
      for (const Tensor& x : {few, many})
        expect_same(
            {x}, [to](auto in) { return ops::cast(in[0], to); }, str("cast ", x, " to ", to));
  }
}

TEST(ExactOnDevices, CopiesFillAndJoinEveryDtype) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  for (DType dtype : kAll) {
    Tensor x = few_numbers({5, 33}, dtype, "x", true), y = few_numbers({2, 33}, dtype, "y", true);
    expect_same(
        {x, y},
        [](auto in) {
          return ops::concatenate(std::array{in[0], in[1], in[0]}, 0);
        },
        str("concatenate ", x));
    expect_same(
        {x},
        [](auto in) {
          return ops::concatenate(std::array{in[0], in[0]}, 1);
        },
        str("concatenate ", x));
    expect_same(
        {x}, [](auto in) { return ops::clone(in[0].transpose(0, 1)); }, str("clone ", x));
    auto into_a_view = [](auto in) {
      Tensor to = Tensor::full({9, 40}, 1, in[0].dtype(), in[0].device()), view = to.slice(0, 1, 9, 2).slice(1, 3, 36);
      ops::copy_(view, in[0].slice(0, 0, 1));  // repeated
      Tensor last = to.select(1, 39);
      ops::fill_(last, 3);
      return to;
    };
    expect_same({x}, into_a_view, str("copy_ ", x));
    for (double value : {0.0, 1.0, 3.0})
      expect_same(
          {x}, [value](auto in) { return Tensor::full({1025}, value, in[0].dtype(), in[0].device()); },
          str("full ", dtype));
  }
}

TEST(ExactOnDevices, SelectionsOfTheLargestAreTheCpusAlsoInTies) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  for (DType dtype : kFloating)
    for (const Shape& shape : {Shape{1}, {5, 1}, {3, 4, 5}, {2, 33}, {33, 2}, {2, 1025}, {1025, 3}, {1, 3, 4099}})
      for (bool has_specials : {false, true}) {
        Tensor x = few_numbers(shape, dtype, "x", has_specials);
        for (int dim = 0; dim < x.num_dims(); ++dim)
          expect_same(
              {x}, [dim](auto in) { return ops::argmax(in[0], dim); }, str("argmax ", dim, " of ", x));
        for (int64_t k : {int64_t{1}, int64_t{5}, int64_t{17}, x.size(-1)}) {
          if (k > std::min<int64_t>(x.size(-1), 40)) continue;
          expect_same(
              {x}, [k](auto in) { return ops::topk(in[0], k).indices; }, str("indices of topk ", k, " of ", x));
          expect_same(
              {x}, [k](auto in) { return ops::topk(in[0], k).values; }, str("values of topk ", k, " of ", x));
        }
      }
}

// So many that rows are sorted: over two million visits of elements otherwise.
TEST(ExactOnDevices, SortedSelectionsAreTheCpus) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  for (DType dtype : kFloating)
    for (const Shape& shape : {Shape{2100}, {3, 1500}})
      for (bool has_specials : {false, true}) {
        Tensor x = has_specials ? few_numbers(shape, dtype, "x", true) : random_normal(shape, "x", dtype);
        const int64_t k = x.size(-1) - 3;
        expect_same(
            {x}, [k](auto in) { return ops::topk(in[0], k).indices; }, str("indices of topk ", k, " of ", x));
        expect_same(
            {x}, [k](auto in) { return ops::topk(in[0], k).values; }, str("values of topk ", k, " of ", x));
      }
}

TEST(ExactOnDevices, ANumberThatIsNotFiniteIsFoundWhereverItIs) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  for (DType dtype : kFloating)
    for (int64_t n : {0, 1, 3, 17, 1025, 20000})
      for (const Place& place : places()) {
        Tensor x = random_normal({n}, "x", dtype), there = place.of(ops::to(x, Device::cuda()));
        SCOPED_TRACE(str(x, " ", place.name));
        EXPECT_TRUE(ops::all_finite(there));
        for (int64_t at : {int64_t{0}, n / 2, n - 1})
          for (double value :
               {static_cast<double>(NAN), static_cast<double>(INFINITY), -static_cast<double>(INFINITY)}) {
            if (at < 0 || at >= n) continue;
            Tensor one = there.slice(0, at, at + 1), kept = ops::clone(one);
            ops::fill_(one, value);
            EXPECT_FALSE(ops::all_finite(there)) << value << " at " << at;
            ops::copy_(one, kept);
          }
        EXPECT_TRUE(ops::all_finite(there));
      }
}

// Sums of whole numbers are exact in any order, so one that is left out or counted twice shows.
TEST(ExactOnDevices, SumsOfWholeNumbersAreTheCpus) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  const int both[] = {0, 2};
  for (DType dtype : {kF32, kF64})
    for (const Shape& shape : {Shape{1}, {3, 64}, {3, 65}, {2, 2049}, {2, 20000}, {600, 5}, {2100, 3}, {2, 520, 5}}) {
      if (dtype == kF64 && shape.num_elements() > 10000) continue;
      Tensor x = few_numbers(shape, dtype, "x", false);
      EXPECT_EQ(ops::sum_of_squares(ops::to(x, Device::cuda())), ops::sum_of_squares(x)) << str(x);
      expect_same(
          {x}, [](auto in) { return ops::sum_all(in[0]); }, str("sum_all ", x));
      if (x.num_dims() == 3)
        expect_same(
            {x}, [&](auto in) { return ops::sum(in[0], both); }, str("sum of two ", x));
      for (int dim = 0; dim < x.num_dims(); ++dim) {
        expect_same(
            {x}, [dim](auto in) { return ops::sum(in[0], dim); }, str("sum ", dim, " ", x));
        expect_same(
            {x}, [dim](auto in) { return ops::add_scalar(ops::max(in[0], dim), 0); }, str("max ", dim, " ", x));
        for (bool is_reverse : {false, true})
          for (bool is_exclusive : {false, true})
            expect_same(
                {x},
                [=](auto in) {
                  // From here on 0 - 0 may have either sign.
                  return ops::add_scalar(ops::cumsum(in[0], dim, {.reverse = is_reverse, .exclusive = is_exclusive}),
                                         0);
                },
                str("cumsum ", dim, is_reverse ? " reverse" : "", is_exclusive ? " exclusive " : " ", x));
      }
    }
}

TEST(ExactOnDevices, RunningSumsRestartWhereTheCpusDo) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  for (const Shape& shape : {Shape{1, 1}, {2, 33}, {2, 2049}, {1, 20000}, {2, 200, 3}}) {
    Tensor x = few_numbers(shape, kF32, "x", false), segments = Tensor::empty({shape[0], shape[1]}, kI32);
    for (int64_t i = 0; i < segments.num_elements(); ++i)
      segments.mutable_data<int32_t>()[i] = static_cast<int32_t>(i * i / 9000 + i / 700);
    for (bool is_reverse : {false, true})
      for (bool is_exclusive : {false, true})
        expect_same(
            {x, segments},
            [=](auto in) {
              return ops::add_scalar(
                  ops::cumsum(in[0], 1, {.reverse = is_reverse, .exclusive = is_exclusive, .segments = in[1]}), 0);
            },
            str("cumsum of segments ", is_reverse, is_exclusive, " ", x));
    for (bool is_reverse : {false, true})
      for (int64_t window : {1, 2, 7, 64, 150, 3000})
        for (bool has_segments : {false, true})
          expect_same(
              {x, segments},
              [=](auto in) {
                return ops::add_scalar(
                    ops::cumsum(in[0], 1,
                                {.reverse = is_reverse, .segments = has_segments ? in[1] : Tensor(), .window = window}),
                    0);
              },
              str("cumsum of windows of ", window, is_reverse, has_segments, " ", x));
  }
}

// Few rows make runs of equal ids over several chunks of sorted rows, many rows make runs of one.
TEST(ExactOnDevices, LookUpsAndTheirSumsAreTheCpus) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  for (DType dtype : {kF32, kF64})
    for (DType id_dtype : {kI64, kI32})
      for (int64_t count : {0, 1, 31, 32, 33, 500, 2500})
        for (auto [rows, dim] : {std::array<int64_t, 2>{1, 64}, {2, 7}, {70, 1}, {300, 4}}) {
          if (count > 500 && dim == 64) continue;
          Tensor table = few_numbers({rows, dim}, dtype, "table", false), ids = indices({count}, rows, id_dtype);
          Tensor dy = few_numbers({count, dim}, dtype, "dy", false);
          const std::string what = str(" ", dy, " of ", rows, " rows by ", id_dtype);
          expect_same(
              {table, ids}, [](auto in) { return ops::embedding(in[0], in[1]); }, "embedding" + what);
          expect_same(
              {dy, ids},
              [rows = rows](auto in) { return ops::add_scalar(ops::embedding_backward(in[0], in[1], rows), 0); },
              "embedding_backward" + what);
        }
}

TEST(ExactOnDevices, GathersAndTheirSumsAreTheCpus) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  for (DType dtype : {kF32, kF64})
    for (auto [from, size, inner] :
         {std::array<int64_t, 3>{5, 3, 1}, {64, 9, 3}, {65, 9, 3}, {300, 2, 5}, {2100, 50, 1}}) {
      Tensor index = indices({2, from, inner}, size), x = few_numbers({2, size, inner}, dtype, "x", false);
      Tensor dy = few_numbers({2, from, inner}, dtype, "dy", false);
      const std::string what = str(" ", index, " in ", x);
      expect_same(
          {x, index}, [](auto in) { return ops::gather(in[0], 1, in[1]); }, "gather" + what);
      expect_same(
          {index, dy},
          [size = size, inner = inner](auto in) {
            return ops::add_scalar(ops::scatter_add({2, size, inner}, 1, in[0], in[1]), 0);
          },
          "scatter_add" + what);
    }
  for (DType dtype : kAll)
    expect_same(
        {few_numbers({4, 9}, dtype, "x", true), indices({4, 40}, 9)},
        [](auto in) { return ops::gather(in[0], 1, in[1]); }, str("gather of ", dtype));
}

// The CPU refuses such ids; a GPU does not wait to look at them.
TEST(ExactOnDevices, IdsOutsideGiveNan) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  for (DType dtype : kFloating)
    for (int64_t outside : {-1, 5, 1 << 20}) {
      auto there = [](const Tensor& x) { return ops::to(x, Device::cuda()); };
      const Tensor ids = Tensor::from<int64_t>({0, 2, outside, 4}, {4}),
                   inside = Tensor::from<int64_t>({0, 2, 0, 4}, {4});
      const Tensor table = few_numbers({5, 3}, dtype, "table", false), dy = few_numbers({4, 3}, dtype, "dy", false);
      // Row `row` is NaN, the others as they are with the ids inside.
      auto expect_nan_row = [&](const Tensor& got, const Tensor& with_inside, int64_t row) {
        for (double x : reference::values(got.select(0, row))) EXPECT_TRUE(std::isnan(x)) << str(dtype, " ", outside);
        for (int64_t other = 0; other < got.size(0); ++other)
          if (other != row) expect_same_values(got.select(0, other), with_inside.select(0, other), str("row ", other));
      };
      expect_nan_row(ops::embedding(there(table), there(ids)), ops::embedding(table, inside), 2);
      expect_nan_row(ops::gather(there(table), 0, there(ids).unsqueeze(1).expand({4, 3})),
                     ops::gather(table, 0, inside.unsqueeze(1).expand({4, 3})), 2);
      Tensor sums = ops::embedding_backward(there(dy), there(ids), 5);
      expect_nan_row(ops::add_scalar(sums, 0), ops::add_scalar(ops::embedding_backward(dy, inside, 5), 0), 0);
      sums = ops::scatter_add({5, 3}, 0, there(ids).unsqueeze(1).expand({4, 3}), there(dy));
      expect_nan_row(ops::add_scalar(sums, 0),
                     ops::add_scalar(ops::scatter_add({5, 3}, 0, inside.unsqueeze(1).expand({4, 3}), dy), 0), 0);
    }
}

TEST(ExactOnDevices, SumsInPlaceAreTheCpus) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  for (auto [to, from] : {std::array{kF32, kF32}, {kF32, kBF16}, {kBF16, kBF16}, {kF64, kF64}}) {
    Tensor x = few_numbers({7, 33}, to, "x", true), y = few_numbers({7, 33}, from, "y", true);
    expect_same(
        {x, y},
        [](auto in) {
          Tensor sum = ops::clone(in[0]);
          ops::add_(sum, in[1], 0.5);
          ops::add_(sum, in[1].slice(0, 2, 3), -2);  // repeated
          ops::scale_(sum, 0.25);
          return ops::add_scalar(sum, 0);
        },
        str("add_ ", x, " ", y));
  }
}

}  // namespace
}  // namespace weft
