// q2_k.p32.k4.1, 256 k: 8 steps of {256 bytes of pairs, 32 bytes (scale | minimum << 4) of k 0..15, 32 of k 16..31}, then 32
// half d, 32 half e (e = -dmin); value d * scale * q + e * minimum, both products rounded once to float.
#pragma once
#include "blocks.h"

OCTAVO_BEGIN
namespace {

struct Q2_K {
  static constexpr i64 kBlock = 2688, kSpan = 256, kStep = 320;
  static constexpr int kZero = 0, kMax = 3, kGroups = 2, kScaleMax = 15;
  static constexpr bool kMin = true;
  template <int Q>
  static inline simd::I quad(const uint8_t* block, i64 s, int c) {
    return pair_quad<Q, 0>(block + s * kStep, c);
  }
  static inline int code(const uint8_t* block, i64 s, int column, int k) { return pair_code(block + s * kStep, column, k); }
  static inline simd::I both(const uint8_t* block, i64 s, int c, int group) {
    return simd::load_u8(block + s * kStep + 256 + group * 32 + c * 16);
  }
  static inline simd::I scale(const uint8_t* block, i64 s, int c, int group) {
    return simd::and_i(both(block, s, c, group), simd::seti(15));
  }
  static inline simd::I minimum(const uint8_t* block, i64 s, int c, int group) { return simd::shr_i<4>(both(block, s, c, group)); }
  static inline simd::F d(const uint8_t* block, int c) { return half_scales(block + 2560, c); }
  static inline simd::F e(const uint8_t* block, int c) { return half_scales(block + 2624, c); }
};

}  // namespace
OCTAVO_END
