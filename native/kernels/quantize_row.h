// One row of activations to int8, scale and sums per group of 32 (layout: act_row_bytes in kernel.h). Shared by the
// prologue of a linear and the epilogue op tile.quantize. Knows one row, not where it came from.
//
// A group whose greatest magnitude is below 1e-36 counts as zero: 127 / max would overflow. A group with a value that is
// not finite gets codes of zero and that scale, so that every product with it is NaN and the row is found out later.
#pragma once
#include "../simd/simd.h"

OCTAVO_BEGIN
namespace {

struct ActRow {
  int8_t* x;
  float *scale, *scaled_sum;
  int32_t* sum16;
};

inline ActRow act_row(uint8_t* row, i64 K) {
  float* scale = reinterpret_cast<float*>(row + K);
  return {reinterpret_cast<int8_t*>(row), scale, scale + K / 32, reinterpret_cast<int32_t*>(scale + K / 32 * 2)};
}

// v0, v1: the 32 values of group g.
inline void quantize_group(simd::F v0, simd::F v1, const ActRow& row, i64 g) {
  using namespace simd;
  float top = reduce_max(max(abs(v0), abs(v1)));
  if ((bits(eq(v0, v0)) & bits(eq(v1, v1))) != 0xffff) top = __builtin_nanf("");
  int32_t s0 = 0, s1 = 0;
  I q0 = zeroi(), q1 = zeroi();
  if (top >= 1e-36f && top <= 3.40282347e38f) {
    const F inverse = set1(127.0f / top);
    q0 = to_i(mul(v0, inverse));
    q1 = to_i(mul(v1, inverse));
    s0 = reduce_add_i(q0);
    s1 = reduce_add_i(q1);
  } else if (top < 1e-36f) {
    top = 0;
  }
  store_i8(row.x + g * 32, q0);
  store_i8(row.x + g * 32 + 16, q1);
  const float scale = top / 127.0f;
  row.scale[g] = scale;
  row.scaled_sum[g] = scale * static_cast<float>(s0 + s1);
  row.sum16[g * 2] = s0;
  row.sum16[g * 2 + 1] = s1;
}

// Groups [first, last) of a row of K; x points at the values of group `first`.
inline void quantize_row(const float* x, i64 K, uint8_t* out, i64 first, i64 last) {
  const ActRow row = act_row(out, K);
  for (i64 g = first; g < last; g++, x += 32) quantize_group(simd::load(x), simd::load(x + 16), row, g);
}

}  // namespace
OCTAVO_END
