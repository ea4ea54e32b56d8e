// q6_k.p32.k4.1, 256 k: 8 steps of {512 nibble bytes, 256 of high pairs, 32 int8 scales of k 0..15, 32 of k 16..31}, then 32
// half d; value d * scale * (q - 32), d * scale rounded once to float.
#pragma once
#include "blocks.h"

OCTAVO_BEGIN
namespace {

struct Q6_K {
  static constexpr i64 kBlock = 6720, kSpan = 256, kStep = 832;
  static constexpr int kZero = 32, kMax = 63, kGroups = 2, kScaleMax = 0;
  static constexpr bool kMin = false;
  template <int Q>
  static inline simd::I quad(const uint8_t* block, i64 s, int c) {
    const uint8_t* at = block + s * kStep;
    return simd::or_i(nibble_quad<Q>(at, c), pair_quad<Q, 4>(at + 512, c));
  }
  static inline int code(const uint8_t* block, i64 s, int column, int k) {
    const uint8_t* at = block + s * kStep;
    return nibble_code(at, column, k) | pair_code(at + 512, column, k) << 4;
  }
  static inline simd::I scale(const uint8_t* block, i64 s, int c, int group) {
    return simd::load_i8(reinterpret_cast<const int8_t*>(block + s * kStep + 768 + group * 32) + c * 16);
  }
  static inline simd::F d(const uint8_t* block, int c) { return half_scales(block + 6656, c); }
};

}  // namespace
OCTAVO_END
