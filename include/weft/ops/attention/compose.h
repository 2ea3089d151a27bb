// Masks from parts: atoms on global positions and documents, and And, Or, Not of any mask functors.
//   auto mask = And{Document{}, Or{And{Causal{}, Window{128}}, Prefix{16}}};
//   Attention y = attend_with(mask, PlainScore{}, SoftmaxNormaliser{}, q, k, v, queries, keys, options);
// The contract of a mask functor is in tokens.h.
#pragma once

#include "weft/ops/attention/tokens.h"

namespace weft::ops {

struct Causal {  // key position <= query position
  template <class I>
  WEFT_HD auto keep(int64_t, int64_t, Token<I> q, Token<I> k) const {
    return k.position <= q.position;
  }
  WEFT_HD Cover cover(int64_t, int64_t, const TokenRange& q, const TokenRange& k) const {
    if (k.position_min > q.position_max) return Cover::empty;
    return k.position_max <= q.position_min ? Cover::full : Cover::partial;
  }
};

struct Window {  // query position - key position < size
  int32_t size;
  template <class I>
  WEFT_HD auto keep(int64_t, int64_t, Token<I> q, Token<I> k) const {
    return q.position - k.position < size;
  }
  WEFT_HD Cover cover(int64_t, int64_t, const TokenRange& q, const TokenRange& k) const {
    if (int64_t{q.position_min} - k.position_max >= size) return Cover::empty;
    return int64_t{q.position_max} - k.position_min < size ? Cover::full : Cover::partial;
  }
};

struct Prefix {  // key position < size
  int32_t size;
  template <class I>
  WEFT_HD auto keep(int64_t, int64_t, Token<I>, Token<I> k) const {
    return k.position < size;
  }
  WEFT_HD Cover cover(int64_t, int64_t, const TokenRange&, const TokenRange& k) const {
    if (k.position_min >= size) return Cover::empty;
    return k.position_max < size ? Cover::full : Cover::partial;
  }
};

struct Document {  // the same document, an id of 0 or more
  template <class I>
  WEFT_HD auto keep(int64_t, int64_t, Token<I> q, Token<I> k) const {
    return (q.document == k.document) & (k.document >= 0);
  }
  WEFT_HD Cover cover(int64_t, int64_t, const TokenRange& q, const TokenRange& k) const {
    if (q.document_min > k.document_max || k.document_min > q.document_max || k.document_max < 0) return Cover::empty;
    bool is_one = q.document_min == q.document_max && k.document_min == k.document_max;
    return is_one && k.document_min >= 0 ? Cover::full : Cover::partial;
  }
};

template <class A, class B>
struct And {
  A a;
  B b;
  template <class I>
  WEFT_HD auto keep(int64_t row, int64_t head, Token<I> q, Token<I> k) const {
    return a.keep(row, head, q, k) & b.keep(row, head, q, k);
  }
  WEFT_HD Cover cover(int64_t row, int64_t head, const TokenRange& q, const TokenRange& k) const {
    Cover x = a.cover(row, head, q, k), y = b.cover(row, head, q, k);
    if (x == Cover::empty || y == Cover::empty) return Cover::empty;
    return x == Cover::full && y == Cover::full ? Cover::full : Cover::partial;
  }
};
template <class A, class B>
And(A, B) -> And<A, B>;

template <class A, class B>
struct Or {
  A a;
  B b;
  template <class I>
  WEFT_HD auto keep(int64_t row, int64_t head, Token<I> q, Token<I> k) const {
    return a.keep(row, head, q, k) | b.keep(row, head, q, k);
  }
  WEFT_HD Cover cover(int64_t row, int64_t head, const TokenRange& q, const TokenRange& k) const {
    Cover x = a.cover(row, head, q, k), y = b.cover(row, head, q, k);
    if (x == Cover::full || y == Cover::full) return Cover::full;
    return x == Cover::empty && y == Cover::empty ? Cover::empty : Cover::partial;
  }
};
template <class A, class B>
Or(A, B) -> Or<A, B>;

template <class A>
struct Not {
  A a;
  template <class I>
  WEFT_HD auto keep(int64_t row, int64_t head, Token<I> q, Token<I> k) const {
    return a.keep(row, head, q, k) == 0;
  }
  WEFT_HD Cover cover(int64_t row, int64_t head, const TokenRange& q, const TokenRange& k) const {
    Cover x = a.cover(row, head, q, k);
    return x == Cover::empty ? Cover::full : x == Cover::full ? Cover::empty : Cover::partial;
  }
};
template <class A>
Not(A) -> Not<A>;
template <class A>
Not(Not<A>) -> Not<Not<A>>;  // without it, Not{Not{a}} is a copy of Not{a}

}  // namespace weft::ops
