// q3_k.p32.k4.1, 256 k: 8 steps of {256 bytes of pairs, 128 of high bits}, 32 half d, six bits of the scales of k 0..15 and
// of k 16..31; value d * (scale - 32) * (q - 4), d * (scale - 32) rounded once to float.
#pragma once
#include "blocks.h"

OCTAVO_BEGIN
namespace {

struct Q3_K {
  static constexpr i64 kBlock = 3520, kSpan = 256, kStep = 384;
  static constexpr int kZero = 4, kMax = 7, kGroups = 2, kScaleMax = 0;
  static constexpr bool kMin = false;
  template <int Q>
  static inline simd::I quad(const uint8_t* block, i64 s, int c) {
    const uint8_t* at = block + s * kStep;
    return simd::or_i(pair_quad<Q, 0>(at, c), bit_quad<Q, 2>(at + 256, c));
  }
  static inline int code(const uint8_t* block, i64 s, int column, int k) {
    const uint8_t* at = block + s * kStep;
    return pair_code(at, column, k) | bit_code(at + 256, column, k) << 2;
  }
  static inline simd::I scale(const uint8_t* block, i64 s, int c, int group) {
    const simd::I six = group ? second_six(block + 3136, s, c) : first_six(block + 3136, s, c);
    return simd::sub_i(six, simd::seti(32));
  }
  static inline simd::F d(const uint8_t* block, int c) { return half_scales(block + 3072, c); }
};

}  // namespace
OCTAVO_END
