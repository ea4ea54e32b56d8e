// One row of activations to int8, scale and sums per group of 32 (layout: act_row_bytes in kernel.h). Shared by the
// prologue of a linear and the epilogue op tile.quantize. Knows groups, not where they came from.
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

// 32 values, and where they go: group g of a row.
struct GroupPlace {
  const float* x;
  ActRow row;
  i64 g;
};

// n <= 16 groups, one a lane where their scales are made; at(i) is the place of group i.
template <class At>
inline void quantize_groups(i64 n, const At& at) {
  using namespace simd;
  alignas(64) int32_t tops[16] = {};
  alignas(64) float scale[16], inverse[16];
  for (i64 i = 0; i < n; i++) {  // magnitudes ascend as integers do, with infinity and then the NaNs on top
    const float* x = at(i).x;
    const I size = seti(INT32_MAX);
    tops[i] = reduce_max_i(max_i(and_i(loadi(x), size), and_i(loadi(x + 16), size)));
  }
  F top = as_f(loadi(tops));
  const M small = lt(top, set1(1e-36f));
  top = select(small, zero(), select(eq(top, top), top, set1(__builtin_nanf(""))));
  store(scale, div(top, set1(127.0f)));
  store(inverse, select(small, zero(), div(set1(127.0f), top)));
  const uint32_t finite = bits(le(top, set1(3.40282347e38f)));
  for (i64 i = 0; i < n; i++) {
    const GroupPlace to = at(i);
    const F by = set1(inverse[i]);
    I q0 = zeroi(), q1 = zeroi();
    if (finite >> i & 1) {
      q0 = to_i(mul(load(to.x), by));
      q1 = to_i(mul(load(to.x + 16), by));
    }
    int32_t* sums = to.row.sum16 + to.g * 2;
    store_codes(to.row.x + to.g * 32, q0, q1, sums);
    to.row.scale[to.g] = scale[i];
    to.row.scaled_sum[to.g] = scale[i] * static_cast<float>(sums[0] + sums[1]);
  }
}

// A whole row of K.
inline void quantize_row(const float* x, i64 K, uint8_t* out) {
  const ActRow row = act_row(out, K);
  for (i64 g = 0; g < K / 32; g += 16) {
    quantize_groups(K / 32 - g < 16 ? K / 32 - g : 16, [&](i64 i) { return GroupPlace{x + (g + i) * 32, row, g + i}; });
  }
}

}  // namespace
OCTAVO_END
