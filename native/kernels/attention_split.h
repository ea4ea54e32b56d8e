// A whole split: the passes of attention_tile.h in register tiles of queries, or its products on the matrix unit. Included by
// attention.cc alone.
#pragma once
#include "attention_matrix.h"
#include "attention_tile.h"

OCTAVO_BEGIN
namespace {

template <KeyKind KIND, int NQ>
static inline void scores_of(const Split& a, int q0, int page, int pages, bool ahead) {
  if (kWide > kNarrow && pages == kWide)
    scores<KIND, NQ, kWide>(a, q0, page, ahead);
  else
    for (int j = 0; j < pages; j += kNarrow) scores<KIND, NQ, kNarrow>(a, q0, page + j, ahead);
}

template <KeyKind KIND, int NQ>
static inline void values_of(const Split& a, int q0, float* o) {
  i64 c = 0;
  for (; c + kColumns * 16 <= a.head_dim; c += kColumns * 16) values<KIND, NQ, kColumns>(a, q0, c, q0 + c == 0, o);
  if constexpr (kColumns > 1)
    for (; c < a.head_dim; c += 16) values<KIND, NQ, 1>(a, q0, c, q0 + c == 0, o);
}

// f<NQ>(first query) over register tiles of nearly equal size.
template <class Call>
static inline void each_tile(int queries, const Call& f) {
  const int tiles = (queries + kMaxQueries - 1) / kMaxQueries;
  for (int t = 0; t < tiles; t++) {
    const int q0 = queries * t / tiles, n = queries * (t + 1) / tiles - q0;
    switch (n) {
      case 1: f.template run<1>(q0); break;
      case 2: f.template run<2>(q0); break;
      case 3: f.template run<kMaxQueries < 3 ? 1 : 3>(q0); break;
      case 4: f.template run<kMaxQueries < 4 ? 1 : 4>(q0); break;
      case 5: f.template run<kMaxQueries < 5 ? 1 : 5>(q0); break;
      default: f.template run<kMaxQueries>(q0); break;
    }
  }
}

template <KeyKind KIND>
struct ScoresCall {
  const Split& a;
  int page, pages;
  template <int NQ>
  void run(int q0) const {
    scores_of<KIND, NQ>(a, q0, page, pages, q0 == 0);
  }
};

template <KeyKind KIND>
struct ValuesCall {
  const Split& a;
  float* o;
  template <int NQ>
  void run(int q0) const {
    values_of<KIND, NQ>(a, q0, o);
  }
};

// All scores of the split.
template <KeyKind KIND>
static void all_scores(const Split& a) {
#if HAS_MATRIX_TILES
  if (KIND == kBf16Dot && a.matrix) {
    const int columns = a.head_dim % 32 ? 16 : 32;  // of one product
    return each_matrix(a.queries, columns / 2, [&](int q0, bool two) {
      two ? matrix_scores<true>(a, q0, columns) : matrix_scores<false>(a, q0, columns);
    });
  }
#endif
  constexpr int step = kWide > 2 ? kWide : 2;
  for (int page = a.first; page < a.last; page += step)
    each_tile(a.queries, ScoresCall<KIND>{a, page, a.last - page < step ? a.last - page : step});
}

template <KeyKind KIND>
static void all_values(const Split& a, float* o) {
#if HAS_MATRIX_TILES
  if (KIND == kBf16Dot && a.matrix) {
    return each_matrix(a.queries, kPage / 2, [&](int q0, bool two) {
      two ? matrix_values<true>(a, q0, o) : matrix_values<false>(a, q0, o);
    });
  }
#endif
  each_tile(a.queries, ValuesCall<KIND>{a, o});
}

// The whole split into `out`.
template <KeyKind KIND>
static void attend(const Split& a, const Partial& out) {
  all_scores<KIND>(a);
  for (int q = 0; q < a.queries; q++) out.m[q] = largest(a, a.s + q * kSplit, q / a.group);
  for (int q = 0; q < a.queries; q++) out.l[q] = softmax<KIND>(a, a.s + q * kSplit, out.m[q]);
  if constexpr (KIND == kInt8)
    for (int q = 0; q < a.queries; q++) a.p_scale[q] = weights(a, a.s + q * kSplit);
  all_values<KIND>(a, out.o);
}

}  // namespace
OCTAVO_END
