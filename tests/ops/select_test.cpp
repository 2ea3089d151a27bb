// Look-ups and joins against plain loops, over edge shapes, strided views, thread counts and bad input.
#include "weft/ops/select.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "tests/reference/matmul.h"
#include "tests/support/random.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"

namespace weft::test {
namespace {

using reference::to_doubles;

Tensor random_index(const Shape& shape, int64_t bound, std::string_view name, DType dtype = kI64) {
  Rng rng = Rng(seed())[name];
  Tensor t = Tensor::empty(shape, dtype);
  for (int64_t i = 0; i < t.num_elements(); ++i) {
    auto value = static_cast<int64_t>(rng.below(static_cast<uint64_t>(bound), static_cast<uint64_t>(i)));
    if (dtype == kI32) t.mutable_data<int32_t>()[i] = static_cast<int32_t>(value);
    else t.mutable_data<int64_t>()[i] = value;
  }
  return t;
}

size_t at(int64_t i) { return static_cast<size_t>(i); }

TEST(Select, EmbeddingTakesRowsOfTheTable) {
  for (DType dtype : {kF32, kBF16, kF64})
    for (DType id_dtype : {kI64, kI32})
      for (Shape ids_shape : {Shape{}, Shape{1}, Shape{0}, Shape{3, 5}, Shape{2, 3, 17}})
        for (int64_t dim : {1, 7, 64}) {
          Tensor wide = random_normal({11, 2 * dim}, "table", dtype),
                 ids = random_index(ids_shape, 11, "ids", id_dtype);
          for (const Tensor& table :
               {wide.slice(1, 0, dim), wide.slice(1, 0, 2 * dim, 2), wide.slice(1, dim, 2 * dim)}) {
            Tensor y = ops::embedding(table, ids);
            Shape expected = ids_shape;
            expected.push_back(dim);
            ASSERT_EQ(to_string(y.shape()), to_string(expected));
            auto got = to_doubles(y), rows = to_doubles(table);
            std::vector<int64_t> id;
            if (id_dtype == kI64) id = ids.to_vector<int64_t>();
            else
              for (int32_t i : ids.to_vector<int32_t>()) id.push_back(i);
            for (size_t i = 0; i < got.size(); ++i)
              ASSERT_EQ(got[i], rows[at(id[i / at(dim)] * dim) + i % at(dim)]) << str(table, " ", ids);
          }
        }
}

TEST(Select, EmbeddingBackwardSumsRowsInFloat32) {
  for (DType dtype : {kF32, kBF16, kF64})
    for (int64_t count : {0, 1, 100, 1000})
      for (int64_t dim : {1, 33, 64}) {
        Tensor ids = random_index({count}, 7, "ids"), dy = random_normal({dim, count}, "dy", dtype).transpose(0, 1);
        Tensor dtable = ops::embedding_backward(dy, ids, 9);
        EXPECT_EQ(to_string(dtable), str("[9, ", dim, "] ", dtype == kF64 ? "f64" : "f32", " cpu"));
        std::vector<double> want(at(9 * dim), 0), x = to_doubles(dy), got = to_doubles(dtable);
        for (int64_t i = 0; i < count; ++i)
          for (int64_t c = 0; c < dim; ++c) want[at(ids.data<int64_t>()[i] * dim + c)] += x[at(i * dim + c)];
        for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], dtype == kF64 ? 1e-12 : 1e-4);
      }
}

TEST(Select, SumsDoNotDependOnTheNumberOfThreads) {
  int threads = num_threads();
  Tensor ids = random_index({3000}, 50, "ids"), dy = random_normal({3000, 96}, "dy");
  Tensor index = random_index({5, 400, 48}, 40, "index"), x = random_normal({5, 400, 48}, "x");
  std::vector<std::vector<float>> tables, sums;
  for (int n : {1, 2, 5}) {
    set_num_threads(n);
    tables.push_back(ops::embedding_backward(dy, ids, 50).to_vector<float>());
    sums.push_back(ops::scatter_add({5, 40, 48}, 1, index, x).to_vector<float>());
  }
  set_num_threads(threads);
  EXPECT_TRUE(tables[0] == tables[1] && tables[0] == tables[2]);
  EXPECT_TRUE(sums[0] == sums[1] && sums[0] == sums[2]);
}

struct GatherCase {
  Shape x;
  int64_t dim, size;  // of the index along dim
};

TEST(Select, GatherAndScatterAddEqualTheLoops) {
  const GatherCase cases[] = {{{5}, 0, 3},       {{3, 4}, 1, 9},     {{3, 4}, 0, 2},
                              {{2, 5, 7}, 1, 6}, {{2, 5, 7}, -1, 1}, {{2, 5, 7}, 0, 4},
                              {{2, 5, 7}, 1, 0}, {{0, 5}, 1, 3},     {{3, 1, 2}, 1, 4}};
  for (DType dtype : {kF32, kBF16, kF64})
    for (const GatherCase& c : cases) {
      std::string name = str(c.x, " dim ", c.dim, " ", dtype);
      int dim = wrap_dim(c.dim, c.x.num_dims(), "test");
      Shape index_shape = c.x;
      index_shape[dim] = c.size;
      Tensor x = random_normal(c.x, "x", dtype), index = random_index(index_shape, c.x[dim], "index");
      Tensor y = ops::gather(x, c.dim, index), dx = ops::scatter_add(c.x, c.dim, index, y);
      ASSERT_EQ(to_string(y.shape()), to_string(index_shape)) << name;
      ASSERT_EQ(to_string(dx), to_string(x)) << name;
      int64_t inner = 1;
      for (int i = dim + 1; i < c.x.num_dims(); ++i) inner *= c.x[i];
      std::vector<double> from = to_doubles(x), got = to_doubles(y), back = to_doubles(dx), want(from.size(), 0);
      for (int64_t i = 0; i < index.num_elements(); ++i) {
        int64_t o = i / (inner * c.size), j = i % inner;
        size_t source = at((o * c.x[dim] + index.data<int64_t>()[i]) * inner + j);
        ASSERT_EQ(got[at(i)], from[source]) << name;
        want[source] += got[at(i)];
      }
      for (size_t i = 0; i < want.size(); ++i)
        ASSERT_NEAR(back[i], want[i], (dtype == kBF16 ? 0.004 : 1e-6) * std::abs(want[i])) << name;
      if (c.x.num_dims() >= 2) {  // strided views of the same values
        Tensor xt = ops::gather(x.transpose(0, 1), dim <= 1 ? 1 - dim : dim, index.transpose(0, 1));
        ASSERT_EQ(to_doubles(xt), to_doubles(y.transpose(0, 1))) << name;
      }
    }
}

TEST(Select, TopkSortsDownAndTheLowestIndexWinsATie) {
  Tensor x = Tensor::from<float>({1, 3, 3, -2, 0, 3}, {6});
  auto top = ops::topk(x, 4);
  EXPECT_EQ(top.values.to_vector<float>(), (std::vector<float>{3, 3, 3, 1}));
  EXPECT_EQ(top.indices.to_vector<int64_t>(), (std::vector<int64_t>{1, 2, 5, 0}));
  float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  auto odd = ops::topk(Tensor::from<float>({-inf, 0.0f, nan, inf, -0.0f, nan}, {6}), 6);
  EXPECT_EQ(odd.indices.to_vector<int64_t>(), (std::vector<int64_t>{2, 5, 3, 1, 4, 0})) << "NaN is above every number";
}

TEST(Select, TopkEqualsSortingOnEveryShape) {
  for (DType dtype : {kF32, kBF16, kF64})
    for (Shape shape : {Shape{1}, Shape{4, 7}, Shape{2, 3, 100}, Shape{0, 5}, Shape{1, 3000}})
      for (int64_t k : {int64_t{1}, int64_t{5}, shape.back()}) {
        if (k > shape.back()) continue;
        Shape stored = shape;
        stored[stored.num_dims() - 1] *= 2;
        Tensor x = random_normal(stored, "x", dtype).slice(-1, 0, stored.back(), 2);
        auto top = ops::topk(x, k);
        auto values = to_doubles(x), got = to_doubles(top.values);
        auto indices = top.indices.to_vector<int64_t>();
        int64_t n = shape.back();
        for (int64_t row = 0; row < x.num_elements() / n; ++row) {
          std::vector<std::pair<double, int64_t>> all;
          for (int64_t i = 0; i < n; ++i) all.push_back({-values[at(row * n + i)], i});
          std::sort(all.begin(), all.end());
          for (int64_t i = 0; i < k; ++i) {
            ASSERT_EQ(got[at(row * k + i)], -all[at(i)].first);
            ASSERT_EQ(indices[at(row * k + i)], all[at(i)].second);
          }
        }
      }
}

TEST(Select, ConcatenateUndoesSplitAlongEveryDimension) {
  for (DType dtype : {kF32, kBF16, kF64, kI64})
    for (int64_t dim : {0, 1, 2, -1}) {
      Tensor x = dtype == kI64 ? random_index({6, 6, 6}, 1000, "x") : random_normal({6, 6, 6}, "x", dtype);
      const std::array<int64_t, 4> sizes = {1, 0, 3, 2};
      for (const Tensor& view : {x, x.transpose(0, 2), x.transpose(1, 2), x.select(0, 1).expand({6, 6, 6})}) {
        auto parts = ops::split(view, sizes, dim);
        ASSERT_EQ(parts.size(), 4u);
        for (const Tensor& part : parts) ASSERT_TRUE(part.shares_memory_with(x));
        Tensor y = ops::concatenate(parts, dim);
        ASSERT_TRUE(y.is_contiguous());
        if (dtype == kI64) ASSERT_EQ(y.to_vector<int64_t>(), view.to_vector<int64_t>());
        else ASSERT_EQ(to_doubles(y), to_doubles(view));
      }
    }
  Tensor flags = Tensor::from<bool>({true, false, true}, {3});
  EXPECT_EQ(ops::concatenate(std::array{flags, flags}, 0).to_vector<bool>(), (std::vector<bool>{1, 0, 1, 1, 0, 1}));
}

TEST(Select, ErrorsNameTheIndexAndTheRange) {
  Tensor table = Tensor::zeros({5, 3}), x = Tensor::zeros({2, 4});
  Tensor ids = Tensor::from<int64_t>({0, 4, 5}, {3}), negative = Tensor::from<int32_t>({2, -1}, {2});
  struct Row {
    std::function<void()> call;
    std::vector<const char*> parts;
  } rows[] = {
      {[&] { ops::embedding(table, ids); }, {"embedding: id 5 at place 2", "0 <= id < 5"}},
      {[&] { ops::embedding(table, negative); }, {"embedding: id -1 at place 1", "0 <= id < 5"}},
      {[&] { ops::embedding(table, x); }, {"the index is not an integer", "[2, 4] f32"}},
      {[&] { ops::embedding(x.select(0, 0), ids); }, {"the table is [4] f32", "[V, D]"}},
      {[&] {
         ops::embedding_backward(Tensor::zeros({3, 2}), ids, 5);
       },
       {"embedding_backward: id 5 at place 2"}},
      {[&] { ops::embedding_backward(x, ids, 5); }, {"embedding_backward: dy is [2, 4]", "[3] plus [D]"}},
      {[&] {
         ops::gather(x, 1, Tensor::full({2, 1}, 4, kI64));
       },
       {"gather: index 4 at place 0", "0 <= index < 4"}},
      {[&] {
         ops::gather(x, 1, Tensor::zeros({3, 1}, kI64));
       },
       {"gather: shapes differ", "[2, 4]", "[3, 1]"}},
      {[&] {
         ops::gather(x, 2, Tensor::zeros({2, 1}, kI64));
       },
       {"gather", "2"}},
      {[&] {
         ops::scatter_add({2, 3}, 1, Tensor::full({2, 4}, 3, kI64), x);
       },
       {"scatter_add: index 3", "0 <= index < 3"}},
      {[&] {
         ops::scatter_add({3, 3}, 1, Tensor::zeros({2, 4}, kI64), x);
       },
       {"scatter_add: shapes differ", "result [3, 3]"}},
      {[&] { ops::topk(x, 5); }, {"topk: k is 5", "1 <= k <= 4"}},
      {[&] { ops::topk(x, 0); }, {"topk: k is 0"}},
      {[&] { ops::concatenate({}, 0); }, {"concatenate: no parts"}},
      {[&] {
         ops::concatenate(std::array{x, table}, 0);
       },
       {"part 1 is [5, 3] f32 cpu", "part 0 is [2, 4] f32 cpu"}},
      {[&] {
         ops::split(x, std::array<int64_t, 2>{1, 2}, 1);
       },
       {"split: 2 sizes with sum 3", "add up to 4"}},
      {[&] {
         ops::split(x, std::array<int64_t, 2>{5, -1}, 1);
       },
       {"split", "add up to 4"}},
  };
  for (const Row& row : rows) {
    try {
      row.call();
      ADD_FAILURE() << "no error that says " << row.parts[0];
    } catch (const Error& e) {
      for (const char* part : row.parts)
        EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what() << "\nlacks " << part;
    }
  }
}

}  // namespace
}  // namespace weft::test
