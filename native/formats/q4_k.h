// q4_k.p32.k4.1, 256 k: 8 x 512 nibble bytes, 32 half d, 32 half e (e = -dmin), 8 x 32 bytes of low halves (scale | minimum
// << 4), 4 x 32 bytes of high pairs; value d * scale * q + e * minimum, both products rounded once to float.
// Scales of eight bits would save four operations a vector and step and cost 2.8 % more bytes, where the stream decides.
#pragma once
#include "blocks.h"

OCTAVO_BEGIN
namespace {

struct Q4_K {
  static constexpr i64 kBlock = 4608, kSpan = 256;
  static constexpr int kZero = 0, kMax = 15, kGroups = 1, kScaleMax = 63;
  static constexpr bool kMin = true;
  template <int Q>
  static inline simd::I quad(const uint8_t* block, i64 s, int c) {
    return nibble_quad<Q>(block + s * 512, c);
  }
  static inline int code(const uint8_t* block, i64 s, int column, int k) { return nibble_code(block + s * 512, column, k); }
  static inline simd::I scale(const uint8_t* block, i64 s, int c, int) { return first_six(block + 4224, s, c); }
  static inline simd::I minimum(const uint8_t* block, i64 s, int c, int) { return second_six(block + 4224, s, c); }
  static inline simd::F d(const uint8_t* block, int c) { return half_scales(block + 4096, c); }
  static inline simd::F e(const uint8_t* block, int c) { return half_scales(block + 4160, c); }
};

}  // namespace
OCTAVO_END
