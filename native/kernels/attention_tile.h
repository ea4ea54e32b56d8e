// The passes over one split of keys (at most 256, aligned to position 0) against a block of queries: scores, softmax, values.
// Knows pages only as 16 addresses, and nothing of sequences, threads or merging.
//
// Four passes over the split: all scores; each query's largest one; p = 2^(s - m), written over the scores; sums of p * v
// held in registers over all keys. Each (query, key) score is one chain over d ascending and each (query, column) sum
// is one chain over keys ascending, so that the bits of a query do not depend on how many queries, pages or columns a
// register tile takes. Masked keys have s = -inf and p = 0 exactly; adding 0 * v changes nothing but the sign of a zero,
// which the final + 0 removes: so it does not matter whether a tile without visible keys is visited.
//
// Tried and dropped: the running maximum per tile of 32 keys (as in the experiment in spike/): a horizontal maximum and a
// rescale per query and tile where one per split does; same independence, since a split starts from nothing. The largest
// score and p of a query in one pass: its horizontal maximum holds up every query (1 % of a prefill; 2 % are from 6 x 4
// tiles of scores instead of 6 x 2). Values by 4 or 8 pages, so that they are read from L1 by all tiles of queries: 0 to
// -3 %. Horizontal maxima and sums of 16 queries at once: 1 %. A 2^x of degree 3: 1 %, not worth its 1e-4. All of the next
// split asked for evenly in all passes: 5 % slower.
//
// Rounding of bf16 keys where the ISA has the bf16 dot product: q and p are rounded to bf16, and l sums the rounded p, so
// that the weights that multiply v add up to 1 exactly (an error in p then weighs v - o, not v). Elsewhere bf16 widens
// to float and every step is a fma.
//
// int8 keys and values stay integers: q is rounded per query to 15 bits, the weights p * (scale of v) of a split to 15 bits
// of the largest one, and both products are sums of int16 pairs in int32, exact in any order: at most 1024 * 16383 * 127 and
// 256 * 32767 * 127, below 2^31. The rounding of q and p is 64 times finer than that of bf16; l sums p in float.
#pragma once
#include "attention_keys.h"
#include "attention_merge.h"

OCTAVO_BEGIN
namespace {

// Queries of a register tile, by the number of registers: queries x pages (or columns) accumulators, the keys (or values),
// one broadcast.
#if defined(__AVX512F__)
constexpr int kMaxQueries = 6, kNarrow = 2, kWide = 4, kColumns = 4;
#elif defined(__AVX2__)
constexpr int kMaxQueries = 3, kNarrow = 1, kWide = 1, kColumns = 1;
#else
constexpr int kMaxQueries = 2, kNarrow = 1, kWide = 1, kColumns = 1;
#endif
constexpr int kPages = kSplit / kPage;
constexpr float kQueryMost = 16383, kWeightMost = 32767;  // codes of q and of weights over int8 pages

struct Split {
  const uint8_t* page[kPages];  // K of the head in each page of [first, last); V follows v_offset bytes later
  const uint8_t* next[kPages];  // K of the pages that come next, for prefetching; nexts of them
  int nexts;
  int first, last;            // pages of the visited tiles
  int first_seen, last_seen;  // pages of which some row sees a key
  i64 v_offset, head_dim;  // bytes from K to V; 2 * v_offset: to the scales of int8 pages
  int queries, group;      // group queries share a row
  bool matrix;             // products over bf16 pages go to the matrix unit
  const int32_t *lo, *hi;  // per row: visible keys, relative to the split
  float scale;             // > 0, to units of log2
  float cap, cap_in;       // cap 0: none; else see capped()
  const float* q;          // [queries][head_dim], or pairs of bf16 or int16 in [queries][head_dim / 2] words
  float *q_scale, *p_scale;  // [queries]: what a code of q, or of a weight, is worth over int8 pages
  float* s;                // [queries][256]: scores, then p (16 bits each in the first half of a row, but for floats)
};

static inline int bits_of(const float* p) {
  int u;
  __builtin_memcpy(&u, p, 4);
  return u;
}

// cap * tanh(s * scale / cap) in units of log2: tanh|x| = (1 - e) / (1 + e), e = 2^(-2 |x| log2(e)).
static inline F capped(F s, float cap_in, float cap) {
  const F x = mul(s, set1(cap_in));
  const F e = exp2<6>(neg(abs(x)));
  const F t = mul(set1(cap), div(sub(set1(1.0f), e), add(set1(1.0f), e)));
  return select(lt(x, zero()), neg(t), t);
}

// Step d of the dot products: a pair of columns (one column of floats or halves) of the keys of NP pages with NQ queries at q.
template <KeyKind KIND, int NQ, int NP>
static inline void score_step(typename Sum<KIND>::T (&acc)[NQ][NP], const uint8_t* const (&k)[NP], const float* q,
                              i64 stride, i64 d) {
#if HAS_BF16_DOT
  if constexpr (KIND == kBf16Dot) {
    I w[NP];
#pragma GCC unroll 4
    for (int j = 0; j < NP; j++) w[j] = loadi(k[j] + d * 64);
#pragma GCC unroll 8
    for (int i = 0; i < NQ; i++) {
      const I x = seti(bits_of(q + i * stride + d));
#pragma GCC unroll 4
      for (int j = 0; j < NP; j++) acc[i][j] = dot_bf16(acc[i][j], w[j], x);
    }
  }
#endif
  if constexpr (KIND == kBf16Wide) {
#pragma GCC unroll 4
    for (int j = 0; j < NP; j++) {
      const I w = loadi(k[j] + d * 64);
      const F even = as_f(shl_i<16>(w)), odd = as_f(and_i(w, seti(static_cast<int32_t>(0xffff0000u))));
#pragma GCC unroll 8
      for (int i = 0; i < NQ; i++) {
        acc[i][j] = fma(even, set1(q[i * stride + 2 * d]), acc[i][j]);
        acc[i][j] = fma(odd, set1(q[i * stride + 2 * d + 1]), acc[i][j]);
      }
    }
  }
  if constexpr (KIND == kInt8) {
#pragma GCC unroll 4
    for (int j = 0; j < NP; j++) {
      const I w = widen_i8(reinterpret_cast<const int8_t*>(k[j]) + d * 32);
#pragma GCC unroll 8
      for (int i = 0; i < NQ; i++) acc[i][j] = dot_i16(acc[i][j], w, seti(bits_of(q + i * stride + d)));
    }
  }
  if constexpr (kAlone<KIND>) {
#pragma GCC unroll 4
    for (int j = 0; j < NP; j++) {
      const F w = elements<KIND>(k[j], d * 16);
#pragma GCC unroll 8
      for (int i = 0; i < NQ; i++) acc[i][j] = fma(w, set1(q[i * stride + d]), acc[i][j]);
    }
  }
}

// q . k of NQ queries from query q0 on with the keys of NP pages from `page` on. Reading K, the lines of V are asked for.
template <KeyKind KIND, int NQ, int NP>
static void scores(const Split& a, int q0, int page, bool ahead) {
  typename Sum<KIND>::T acc[NQ][NP];
#pragma GCC unroll 8
  for (int i = 0; i < NQ; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NP; j++) acc[i][j] = Sum<KIND>::none();
  const uint8_t* k[NP];
#pragma GCC unroll 4
  for (int j = 0; j < NP; j++) k[j] = a.page[page + j];
  const i64 steps = kAlone<KIND> ? a.head_dim : a.head_dim / 2;
  const i64 stride = KIND == kBf16Dot || KIND == kInt8 ? steps : a.head_dim;
  const float* q = a.q + q0 * stride;
  const i64 lines = KIND == kInt8 || KIND == kHalf ? 4 : 8;  // that a page's 8 steps read
  i64 v_page = 0, v_line = 0;               // V is asked for at the pace of reading K, page after page
  for (i64 at = 0; at < steps; at += 8) {   // head_dim is a multiple of 16
    if (ahead)
#pragma GCC unroll 4
      for (int j = 0; j < NP; j++) {
        const uint8_t* v = k[v_page] + a.v_offset + v_line * 64;
        for (i64 d = 0; d < lines; d++) prefetch(v + d * 64);
        v_line += lines;
        if (v_line * 64 == a.v_offset) v_line = 0, v_page++;
      }
    for (i64 d = at; d < at + 8; d++) score_step<KIND>(acc, k, q, stride, d);
  }
#pragma GCC unroll 8
  for (int i = 0; i < NQ; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NP; j++) {
      float* to = a.s + (q0 + i) * kSplit + (page + j) * kPage;
      if constexpr (KIND == kInt8) {
        const F scale = mul(load(reinterpret_cast<const float*>(k[j] + 2 * a.v_offset)), set1(a.q_scale[q0 + i]));
        store(to, mul(to_f(acc[i][j]), scale));
      } else {
        store(to, acc[i][j]);
      }
    }
}

// One step of the sums: the values of two keys at v, times the weights of pair t of NQ queries at p.
template <KeyKind KIND, int NQ, int NC>
static inline void value_step(typename Sum<KIND>::T (&acc)[NQ][NC], const uint8_t* v, const float* p, int t, i64 head_dim) {
  if constexpr (KIND == kInt8) {
    I w[NC];
#pragma GCC unroll 4
    for (int j = 0; j < NC; j++) w[j] = widen_i8(reinterpret_cast<const int8_t*>(v) + j * 32);
#pragma GCC unroll 8
    for (int i = 0; i < NQ; i++) {
      const I x = seti(bits_of(p + i * kSplit + t));
#pragma GCC unroll 4
      for (int j = 0; j < NC; j++) acc[i][j] = dot_i16(acc[i][j], w[j], x);
    }
  }
#if HAS_BF16_DOT
  if constexpr (KIND == kBf16Dot) {
    I w[NC];
#pragma GCC unroll 4
    for (int j = 0; j < NC; j++) w[j] = loadi(v + j * 64);
#pragma GCC unroll 8
    for (int i = 0; i < NQ; i++) {
      const I x = seti(bits_of(p + i * kSplit + t));
#pragma GCC unroll 4
      for (int j = 0; j < NC; j++) acc[i][j] = dot_bf16(acc[i][j], w[j], x);
    }
  }
#endif
  if constexpr (KIND == kBf16Wide || kAlone<KIND>) {
#pragma GCC unroll 4
    for (int j = 0; j < NC; j++) {
      F even, odd;
      if constexpr (KIND == kBf16Wide) {
        const I w = loadi(v + j * 64);
        even = as_f(shl_i<16>(w));
        odd = as_f(and_i(w, seti(static_cast<int32_t>(0xffff0000u))));
      } else {
        even = elements<KIND>(v, j * 16);
        odd = elements<KIND>(v, head_dim + j * 16);
      }
#pragma GCC unroll 8
      for (int i = 0; i < NQ; i++) {
        acc[i][j] = fma(even, set1(p[i * kSplit + 2 * t]), acc[i][j]);
        acc[i][j] = fma(odd, set1(p[i * kSplit + 2 * t + 1]), acc[i][j]);
      }
    }
  }
}

// Sums of p * v of NQ queries over NC x 16 columns from column c on; the pages of what comes next are asked for.
template <KeyKind KIND, int NQ, int NC>
static void values(const Split& a, int q0, i64 c, bool ahead, float* o) {
  typename Sum<KIND>::T acc[NQ][NC];
#pragma GCC unroll 8
  for (int i = 0; i < NQ; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NC; j++) acc[i][j] = Sum<KIND>::none();
  const i64 pair = a.head_dim * (KIND == kFloat ? 8 : KIND == kInt8 ? 2 : 4);
  const i64 column = KIND == kInt8 || KIND == kHalf ? 2 : 4;  // bytes of two tokens' values; floats, halves: one token's
  const i64 lines = (a.v_offset / 64 + kPage / 2 - 1) / (kPage / 2);  // of a page's K, for each pair
  for (int page = a.first_seen; page < a.last_seen; page++) {
    const uint8_t* v = a.page[page] + a.v_offset + c * column;
    const uint8_t* soon = ahead && page - a.first_seen < a.nexts ? a.next[page - a.first_seen] : nullptr;
    const float* p = a.s + q0 * kSplit + (KIND == kBf16Dot || KIND == kInt8 ? page * kPage / 2 : page * kPage);
    if (KIND == kInt8 && soon) prefetch(soon + 2 * a.v_offset);
    for (int t = 0; t < kPage / 2; t++, v += pair) {
      if (soon)
        for (i64 n = 0; n < lines; n++) prefetch(soon + (t * lines + n) * 64);
      value_step<KIND>(acc, v, p, t, a.head_dim);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < NQ; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NC; j++) {
      float* to = o + (q0 + i) * a.head_dim + c + j * 16;
      if constexpr (KIND == kInt8)
        store(to, mul(to_f(acc[i][j]), set1(a.p_scale[q0 + i])));
      else
        store(to, add(acc[i][j], zero()));
    }
}

#if HAS_BF16_DOT
// bf16 of lo, then of hi, to nearest even (denormals to zero, as the dot product reads them anyway).
static inline I pack_bf16(F lo, F hi) { return {(__m512i)_mm512_cvtne2ps_pbh(hi.v, lo.v)}; }
#endif

// The largest score of one query in units of log2; keys that its row does not see get -inf, a soft cap is applied. A
// positive scale keeps the order, rounding included, so that the largest is scaled instead of all.
static inline float largest(const Split& a, float* s, int row) {
  const F never = set1(-__builtin_inff());
  const int lo = a.lo[row], hi = a.hi[row];
  F x = never, y = never;  // of even and odd pages
  for (int page = a.first; page < a.last; page += 2) {
    const int key = page * kPage;
    F u = load(s + key), v = load(s + key + kPage);
    if (a.cap > 0) {
      u = capped(u, a.cap_in, a.cap);
      v = capped(v, a.cap_in, a.cap);
    }
    if (key < lo || key + kTile > hi) {
      u = select(mask_n(lo - key), never, select(mask_n(hi - key), u, never));
      v = select(mask_n(lo - key - kPage), never, select(mask_n(hi - key - kPage), v, never));
    }
    if (a.cap > 0 || key < lo || key + kTile > hi) {
      store(s + key, u);
      store(s + key + kPage, v);
    }
    x = max(x, u);
    y = max(y, v);
  }
  return reduce_max(max(x, y)) * a.scale;
}

// p over the scores of one query; l by lanes, tiles ascending, then the fixed tree.
template <KeyKind KIND>
static inline float softmax(const Split& a, float* s, float m) {
  const F base = set1(m == -__builtin_inff() ? 0.0f : m);  // no key is visible: 2^(-inf - 0) = 0
  const F scale = set1(a.scale);
  F l = zero();
  for (int page = a.first; page < a.last; page += 2) {
    const F x = sub(mul(load(s + page * kPage), scale), base), y = sub(mul(load(s + (page + 1) * kPage), scale), base);
#if HAS_BF16_DOT
    if constexpr (KIND == kBf16Dot) {
      const I p = pack_bf16(exp2<4>(x), exp2<4>(y));
      l = dot_bf16(l, p, seti(0x3f803f80));  // pairs of 1
      storei(s + page * kPage / 2, p);
    }
#endif
    if constexpr (KIND != kBf16Dot) {
      const F p0 = exp2<6>(x), p1 = exp2<6>(y);
      l = add(add(l, p0), p1);
      store(s + page * kPage, p0);
      store(s + (page + 1) * kPage, p1);
    }
  }
  return reduce_add(l);
}

// Weights p * (scale of v) of one query over int8 pages: p in place to int16 codes in the first half of its row, and what a
// code is worth. A key that is not seen (p = 0) has the code 0 whatever stands in its page.
static inline float weights(const Split& a, float* s) {
  F top = zero();
  for (int page = a.first; page < a.last; page++) {
    const F p = load(s + page * kPage);
    const F scale = load(reinterpret_cast<const float*>(a.page[page] + 2 * a.v_offset) + kPage);
    const F w = select(gt(p, zero()), mul(p, scale), zero());
    top = max(w, top);
    store(s + page * kPage, w);
  }
  const float most = reduce_max(top);
  const F inverse = set1(most >= 1e-30f ? kWeightMost / most : 0.0f);  // less would overflow, and is nothing
  for (int page = a.first; page < a.last; page++)
    store_i16(reinterpret_cast<int16_t*>(s) + page * kPage, to_i(mul(load(s + page * kPage), inverse)));
  return most / kWeightMost;
}

}  // namespace
OCTAVO_END
