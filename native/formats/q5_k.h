// q5_k.p32.k4.1, 256 k: 8 steps of {512 nibble bytes, 128 of fifth bits}, 32 half d, 32 half e (e = -dmin), six bits of the
// scales and minima; value d * scale * q + e * minimum, both products rounded once to float.
#pragma once
#include "blocks.h"

OCTAVO_BEGIN
namespace {

struct Q5_K {
  static constexpr i64 kBlock = 5632, kSpan = 256, kStep = 640;
  static constexpr int kZero = 0, kMax = 31, kGroups = 1, kScaleMax = 63;
  static constexpr bool kMin = true;
  template <int Q>
  static inline simd::I quad(const uint8_t* block, i64 s, int c) {
    const uint8_t* at = block + s * kStep;
    return simd::or_i(nibble_quad<Q>(at, c), bit_quad<Q, 4>(at + 512, c));
  }
  static inline int code(const uint8_t* block, i64 s, int column, int k) {
    const uint8_t* at = block + s * kStep;
    return nibble_code(at, column, k) | bit_code(at + 512, column, k) << 4;
  }
  static inline simd::I scale(const uint8_t* block, i64 s, int c, int) { return first_six(block + 5248, s, c); }
  static inline simd::I minimum(const uint8_t* block, i64 s, int c, int) { return second_six(block + 5248, s, c); }
  static inline simd::F d(const uint8_t* block, int c) { return half_scales(block + 5120, c); }
  static inline simd::F e(const uint8_t* block, int c) { return half_scales(block + 5184, c); }
};

}  // namespace
OCTAVO_END
