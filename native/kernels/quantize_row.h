// One row of activations to int8, scale and sums per group of 32, scales equal over a span (layout: ActGroup in kernel.h).
// Shared by the prologue of a linear and the epilogue op tile.quantize. Knows groups, not where they came from.
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

// What is the same for all lanes of 16 groups: scales, what values are multiplied by, whether they are finite.
struct GroupScales {
  alignas(64) float scale[16];
  float inverse[16];
  uint32_t finite;
};

// Codes of groups [first, first + n) of at(i), n <= 16, to `behind` groups behind their places, with what belongs to them;
// codes(i, half) are those of 16 values. Two groups at a time; an odd last one is done twice.
template <class At, class Codes>
inline void store_groups(i64 first, i64 n, i64 behind, simd::F scale, const At& at, const Codes& codes) {
  using namespace simd;
  alignas(64) float scaled_sum[16], scales[16];
  alignas(64) int32_t low[16], high[16];
  I v[8];
  for (i64 i = 0; i < 8; i++) v[i] = zeroi();
  for (i64 i = 0; i < n; i += 2) {
    const i64 a = first + i, b = i + 1 < n ? a + 1 : a;
    v[i / 2] = store_codes(at(a).to[behind].x, at(b).to[behind].x, codes(a, 0), codes(a, 1), codes(b, 0), codes(b, 1));
  }
  I one, two;
  sums16(v, one, two);
  storei(low, one);
  storei(high, two);
  store(scales, scale);
  store(scaled_sum, mul(scale, to_f(add_i(one, two))));
  for (i64 i = 0; i < n; i++) {
    ActGroup& to = at(first + i).to[behind];
    to.scale = scales[i];
    to.scaled_sum = scaled_sum[i];
    to.sum16[0] = static_cast<int16_t>(low[i]);
    to.sum16[1] = static_cast<int16_t>(high[i]);
    to.sum = low[i] + high[i];
  }
}

// Scales of 16 groups, from their greatest magnitudes as integers.
inline void scales_of(simd::I tops, GroupScales& to) {
  using namespace simd;
  F top = as_f(tops);
  const M small = lt(top, set1(1e-36f));
  top = select(small, zero(), select(eq(top, top), top, set1(__builtin_nanf(""))));
  store(to.scale, div(top, set1(127.0f)));
  store(to.inverse, select(small, zero(), div(set1(127.0f), top)));
  to.finite = bits(le(top, set1(3.40282347e38f)));
}

// The greatest magnitudes of n <= 16 groups, one a lane; lanes beyond repeat the last.
template <class At>
inline simd::I tops_of(i64 n, const At& at) {
  using namespace simd;
  const I size = seti(INT32_MAX);
  I v[16];
  for (i64 i = 0; i < 16; i++) {  // magnitudes ascend as integers do, with infinity and then the NaNs on top
    const float* x = at(i < n ? i : n - 1).x;
    v[i] = max_i(and_i(loadi(x), size), and_i(loadi(x + 16), size));
  }
  return most16(v);
}

// n <= 16 groups with a scale each; at(i) is the place of group i.
template <class At>
inline void quantize_groups(i64 n, const At& at) {
  using namespace simd;
  GroupScales found;
  scales_of(tops_of(n, at), found);
  store_groups(0, n, 0, load(found.scale), at, [&](i64 i, int half) {
    return found.finite >> i & 1 ? to_i(mul(load(at(i).x + half * 16), set1(found.inverse[i]))) : zeroi();
  });
}

// The greatest of lanes [first, first + 8), in all of them, and whether what they stand for is wide (kernel.h). Magnitudes
// below 1e-15 are not, since their squares vanish.
inline bool join_eight(int32_t* tops) {
  float sum = 0, most = 0;
  int32_t top = 0;
  for (int i = 0; i < 8; i++) {
    float each;
    __builtin_memcpy(&each, tops + i, 4);
    sum = sum + each * each;
    if (tops[i] > top) top = tops[i], most = each;
  }
  for (int i = 0; i < 8; i++) tops[i] = top;
  return most >= 1e-15f && 2 * (most * most) > sum;
}

// One or two super-blocks: 8 or 16 groups, 8 with one scale; rests lie `behind` groups behind.
template <class At>
inline void quantize_supers(i64 n, i64 behind, const At& at) {
  using namespace simd;
  alignas(64) int32_t tops[16];
  storei(tops, tops_of(n, at));
  const bool wide[2] = {join_eight(tops), join_eight(tops + 8)};
  GroupScales found;
  scales_of(loadi(tops), found);
  const auto scaled = [&](i64 i, int half) { return mul(load(at(i).x + half * 16), set1(found.inverse[i])); };
  store_groups(0, n, 0, load(found.scale), at,
               [&](i64 i, int half) { return found.finite >> i & 1 ? to_i(scaled(i, half)) : zeroi(); });
  for (i64 first = 0; first < n; first += 8) {
    if (wide[first / 8] && found.finite >> first & 1) {
      store_groups(first, 8, behind, set1(found.scale[first] * 0.0078125f), at, [&](i64 i, int half) {
        const F value = scaled(i, half);
        return to_i(mul(sub(value, to_f(to_i(value))), set1(128.0f)));
      });
    } else {
      for (i64 i = first; i < first + 8; i++) at(i).to[behind] = {};
    }
  }
}

// A whole row of K.
inline void quantize_row(const float* x, i64 K, i64 span, uint8_t* out) {
  ActGroup* to = act_groups_of(out);
  const i64 groups = K / 32;
  for (i64 g = 0; g < groups; g += 16) {
    const i64 n = groups - g < 16 ? groups - g : 16;
    const auto at = [&](i64 i) { return GroupPlace{x + (g + i) * 32, to + g + i}; };
    if (span == 32) quantize_groups(n, at);
    else quantize_supers(n, groups, at);
  }
}

}  // namespace
OCTAVO_END
