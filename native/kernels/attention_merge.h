// What one split of keys leaves behind, and how splits become one row: included by attention_tile.h alone. Knows nothing of
// pages, masks or threads.
//
// Scores stand in units of log2: s * scale * log2(e), so that p = 2^(s - m) needs neither a multiplication by log2(e) nor a
// two-part reduction per key. Merging is the same left fold whoever does it: (m, l, o) of the splits of a row, ascending.
#pragma once
#include "../simd/simd.h"

OCTAVO_BEGIN
namespace {

using namespace simd;

constexpr float kLog2e = 1.44269504088896340736f;

// (m, l, o) of `queries` rows of q. m: largest score, -inf where no key is visible. l: sum of p. o: sum of p * v.
struct Partial {
  float *m, *l, *o;  // [queries], [queries], [queries][head_dim]
};

// 2^x for x <= 0 (up to 126), minimax with 2^0 = 1 exactly, relative error of the polynomial on [-1/2, 1/2]: degree 6 2e-9
// (below the rounding of the last fma, 6e-8), degree 4 2.8e-6 (for p that is rounded to bf16 next: half an ulp is 2e-3).
// x + kMagic holds round(x) + 127 in its low bits: 1.5 * 2^23 has an ulp of 1; shifted by 23 that is the float 2^round(x).
// Below -127 the exponent field is 0: exactly 0. NaN stays NaN (max gives its second operand then).
template <int DEGREE>
static inline F exp2(F x) {
  constexpr float kMagic = 12582912.0f + 127.0f;
  x = max(set1(-127.0f), x);
  const F t = add(x, set1(kMagic));
  const F r = sub(x, sub(t, set1(kMagic)));
  F p;
  if constexpr (DEGREE == 4) {
    p = set1(0x1.3a02ccp-7f);
    p = fma(p, r, set1(0x1.c9fc46p-5f));
    p = fma(p, r, set1(0x1.ec0378p-3f));
    p = fma(p, r, set1(0x1.62e12cp-1f));
  } else {
    static_assert(DEGREE == 6);
    p = set1(0x1.41fbbcp-13f);
    p = fma(p, r, set1(0x1.5f3e54p-10f));
    p = fma(p, r, set1(0x1.3b2d4cp-7f));
    p = fma(p, r, set1(0x1.c6aee8p-5f));
    p = fma(p, r, set1(0x1.ebfbdcp-3f));
    p = fma(p, r, set1(0x1.62e430p-1f));
  }
  p = fma(p, r, set1(1.0f));
  return mul(p, as_f(shl_i<23>(as_i(t))));
}

// 2^(a - b) in all lanes; 1 exactly where a == b.
static inline F factor(float a, float b) { return exp2<6>(set1(a - b)); }

// to = to (+) from, for every query. A part without visible keys (l = 0, m = -inf) changes nothing.
static void merge(const Partial& to, const Partial& from, i64 queries, i64 head_dim) {
  for (i64 q = 0; q < queries; q++) {
    if (from.l[q] == 0) continue;
    float* o = to.o + q * head_dim;
    const float* p = from.o + q * head_dim;
    if (to.l[q] == 0) {
      to.m[q] = from.m[q];
      to.l[q] = from.l[q];
      for (i64 d = 0; d < head_dim; d += 16) store(o + d, load(p + d));
      continue;
    }
    const float m = from.m[q] > to.m[q] ? from.m[q] : to.m[q];
    const F a = factor(to.m[q], m), b = factor(from.m[q], m);
    float l[16];
    store(l, fma(set1(to.l[q]), a, mul(set1(from.l[q]), b)));
    to.m[q] = m;
    to.l[q] = l[0];
    for (i64 d = 0; d < head_dim; d += 16) store(o + d, fma(load(o + d), a, mul(load(p + d), b)));
  }
}

// o / l in place. sinks: per head of the group one more logit that has no value: it joins the denominator once, here.
// A row without visible keys is zero.
static void finish(const Partial& part, i64 queries, i64 group, i64 head_dim, const float* sinks) {
  for (i64 q = 0; q < queries; q++) {
    float* o = part.o + q * head_dim;
    F l = set1(part.l[q]), scale = set1(1.0f);
    if (part.l[q] == 0) {
      l = set1(1.0f);
    } else if (sinks) {
      const float sink = sinks[q % group] * kLog2e;
      const float m = sink > part.m[q] ? sink : part.m[q];
      scale = factor(part.m[q], m);
      l = fma(l, scale, factor(sink, m));
    }
    for (i64 d = 0; d < head_dim; d += 16) store(o + d, div(mul(load(o + d), scale), l));
  }
}

}  // namespace
OCTAVO_END
