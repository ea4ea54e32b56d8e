// One row of activations to int8, scale and sums per group of 32 (layout: ActGroup in kernel.h). Shared by the
// prologue of a linear and the epilogue op tile.quantize. Knows groups, not where they came from.
//
// Measured on a Zen 5, SmolLM2, 512 rows: scales and sums beside the codes (in arrays of their own at the end of a row before:
// four lines a group), horizontal maxima and sums of 16 groups at once instead of one by one, and no divisions in the walk
// over tiles of rows took 7.5 % off a prefill (126 to 116.5 ms in turns); the group alone 19 to 16 cycles. Tried and dropped:
// the four figures of a group merged to one store of 16 bytes (18 to 20 cycles), lines asked for ahead of the stores (21).
//
// A group whose greatest magnitude is below 1e-36 counts as zero: 127 / max would overflow. A group with a value that is
// not finite gets codes of zero and that scale, so that every product with it is NaN and the row is found out later.
#pragma once
#include "../simd/simd.h"

OCTAVO_BEGIN
namespace {

inline ActGroup* act_groups_of(uint8_t* row) { return reinterpret_cast<ActGroup*>(row); }

// 32 values, and where they go.
struct GroupPlace {
  const float* x;
  ActGroup* to;
};

// Codes of half a group, zero where the group is not finite.
inline simd::I codes_of(const float* x, simd::F by, bool finite) {
  return finite ? simd::to_i(simd::mul(simd::load(x), by)) : simd::zeroi();
}

// n <= 16 groups, one a lane where their scales and sums are made; at(i) is the place of group i. Codes are made of two
// groups at a time; an odd last one is done twice.
template <class At>
inline void quantize_groups(i64 n, const At& at) {
  using namespace simd;
  alignas(64) float scale[16], inverse[16], scaled_sum[16];
  alignas(64) int32_t first[16], second[16];
  const I size = seti(INT32_MAX);
  I v[16];
  for (i64 i = 0; i < 16; i++) {  // magnitudes ascend as integers do, with infinity and then the NaNs on top
    const float* x = at(i < n ? i : n - 1).x;
    v[i] = max_i(and_i(loadi(x), size), and_i(loadi(x + 16), size));
  }
  F top = as_f(most16(v));
  const M small = lt(top, set1(1e-36f));
  top = select(small, zero(), select(eq(top, top), top, set1(__builtin_nanf(""))));
  const F each = div(top, set1(127.0f));
  store(scale, each);
  store(inverse, select(small, zero(), div(set1(127.0f), top)));
  const uint32_t finite = bits(le(top, set1(3.40282347e38f)));
  for (i64 i = 0; i < n; i += 2) {
    const i64 j = i + 1 < n ? i + 1 : i;
    const GroupPlace here = at(i), next = at(j);
    const F by = set1(inverse[i]), with = set1(inverse[j]);
    const bool fine = finite >> i & 1, good = finite >> j & 1;
    v[i / 2] = store_codes(here.to->x, next.to->x, codes_of(here.x, by, fine), codes_of(here.x + 16, by, fine),
                           codes_of(next.x, with, good), codes_of(next.x + 16, with, good));
  }
  I one, two;
  sums16(v, one, two);
  storei(first, one);
  storei(second, two);
  store(scaled_sum, mul(each, to_f(add_i(one, two))));
  for (i64 i = 0; i < n; i++) {
    ActGroup& to = *at(i).to;
    to.scale = scale[i];
    to.scaled_sum = scaled_sum[i];
    to.sum16[0] = first[i];
    to.sum16[1] = second[i];
  }
}

// A whole row of K.
inline void quantize_row(const float* x, i64 K, uint8_t* out) {
  ActGroup* to = act_groups_of(out);
  for (i64 g = 0; g < K / 32; g += 16) {
    quantize_groups(K / 32 - g < 16 ? K / 32 - g : 16, [&](i64 i) { return GroupPlace{x + (g + i) * 32, to + g + i}; });
  }
}

}  // namespace
OCTAVO_END
