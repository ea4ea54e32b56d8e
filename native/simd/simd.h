// The vocabulary that every kernel is written in: logical vectors of 16 lanes, the same on every ISA. Chooses the file of
// the ISA by the compiler's own macros, then adds what needs no ISA (exp, silu). Knows nothing of kernels.
//
// Types: F 16 floats, I 16 int32 (or 64 bytes), M a mask of 16 lanes, Quad four int8 prepared for Dot. All of it is
// static inside the variant's own namespace. Bits: avx2, avx512 and avx512bf16 agree in every function; portable differs
// where a fma is written (it multiplies, then adds).
//
//   zero set1 seti zeroi iota            load store load_n store_n loadi storei load_bf16 store_bf16 load_f16 store_f16 load_i8 load_u8
//   most16(v): lane i is the largest lane of v[i], of 16 vectors
//   store_codes(p, q, a, b, c, d): lanes in -127..127 as bytes, a and b to p, c and d to q; gives sums that sums16(8 such
//   results, first, second) puts in order: lane 2i is the sum of a (first) or b (second) of result i, lane 2i + 1 of c or d
//   transpose_pairs(from, to): 16 rows of 8 pairs of 16 bits become 8 rows of 16 pairs
//   widen_i8 (32 int8 to 32 int16) store_i16 (16 lanes) dot_i16: lane l: acc + a[2l] * b[2l] + a[2l+1] * b[2l+1], exact
//   add sub mul div min max abs neg sqrt fma(a,b,c)=a*b+c fnma(a,b,c)=c-a*b fma1 (of scalars) floor round
//   min(a,b) is a<b?a:b and max(a,b) is a>b?a:b lane by lane, so a NaN in a gives b.
//   to_f to_i (nearest even) as_i as_f add_i sub_i sub_bytes mul_16 add_16 shr_16<n> (avx512) mul_i max_i and_i or_i xor_i shr_i<n> (logical) shr_by sar_i<n> shl_i<n>
//   gt_i eq_i
//   lt le gt ge eq (false for NaN) mask_n select select_i any bits first
//   reduce_add reduce_max reduce_add_i reduce_max_i: lanes i and i+8, then i+4, i+2, i+1
//   bcast4 dot_u8s8 nibble_lo nibble_hi  table16(16 bytes, aligned) lookup(table, bytes below 16): table entries
//   quad Dot  exp silu  prefetch  HAS_BF16_DOT dot_bf16
//
// Dot<MAX, ZERO, QUADS> sums products of unsigned bytes (each at most MAX) less ZERO with int8 in -127..127 over the QUADS (4
// or 8) quads of a group, exactly: start(start_of(activations of the group, their sum)), step<n>(w, x) for n = 0..QUADS - 1
// in any order of quads, total().
#pragma once
#include "../variant.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#include "avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "avx2.h"
#else
#include "portable.h"
#endif

#ifndef HAS_MATRIX_TILES
#define HAS_MATRIX_TILES 0
#endif

OCTAVO_BEGIN
namespace simd {

#if !defined(__AVX512F__)
static inline void transpose_pairs(const uint16_t* from, uint16_t* to) {
  for (int i = 0; i < 8; i++)
    for (int t = 0; t < 16; t++)
      for (int j = 0; j < 2; j++) to[(i * 16 + t) * 2 + j] = from[(t * 8 + i) * 2 + j];
}
static inline I most16(const I* v) {
  alignas(64) int32_t most[16];
  for (int i = 0; i < 16; i++) most[i] = reduce_max_i(v[i]);
  return loadi(most);
}
static inline I store_codes(int8_t* p, int8_t* q, I a, I b, I c, I d) {
  alignas(64) int32_t sums[16];
  store_half_codes(p, a, b, sums);
  store_half_codes(q, c, d, sums + 2);
  return loadi(sums);
}
static inline void sums16(const I* v, I& first, I& second) {
  alignas(64) int32_t sums[16], one[16], two[16];
  for (int i = 0; i < 8; i++) {
    storei(sums, v[i]);
    one[2 * i] = sums[0], one[2 * i + 1] = sums[2];
    two[2 * i] = sums[1], two[2 * i + 1] = sums[3];
  }
  first = loadi(one);
  second = loadi(two);
}
#endif

// e^x. x = n ln 2 + r, |r| <= ln 2 / 2; the Taylor series to r^7 leaves r^8 / 8! < 5.2e-9 of the value, so that rounding
// dominates: at most 7.7e-8 of the value measured (portable 9.8e-8). ln 2 = hi + lo, hi has 10 bits, so n * hi is exact.
// -inf and all below -104 (half of the least denormal is e^-103.97) give 0, above 88.73 inf, NaN stays, exp(0) is 1.
static inline F exp(F x) {
  x = max(set1(-104.0f), x);
  x = min(set1(89.0f), x);
  const F n = round(mul(x, set1(1.44269504f)));
  F r = fnma(n, set1(0.693359375f), x);
  r = fnma(n, set1(-2.12194440e-4f), r);
  F p = set1(1.0f / 5040);
  p = fma(p, r, set1(1.0f / 720));
  p = fma(p, r, set1(1.0f / 120));
  p = fma(p, r, set1(1.0f / 24));
  p = fma(p, r, set1(1.0f / 6));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  return scale2(p, n);
}

// x * sigmoid(x), with a real division.
static inline F silu(F x) { return div(x, add(set1(1.0f), exp(neg(x)))); }

}  // namespace simd
OCTAVO_END
