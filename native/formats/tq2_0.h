// tq2_0.p32.k4.1, 256 k: 8 steps of 256 bytes of pairs, 32 half d; value d * (q - 1). Holds TQ1_0 as well.
#pragma once
#include "blocks.h"

OCTAVO_BEGIN
namespace {

struct Tq2_0 {
  static constexpr i64 kBlock = 2112, kSpan = 256;
  static constexpr int kZero = 1, kMax = 3, kGroups = 1;
  static constexpr bool kMin = false;
  template <int Q>
  static inline simd::I quad(const uint8_t* block, i64 s, int c) {
    return pair_quad<Q, 0>(block + s * 256, c);
  }
  static inline int code(const uint8_t* block, i64 s, int column, int k) { return pair_code(block + s * 256, column, k); }
  static inline simd::F d(const uint8_t* block, i64, int c, int) { return half_scales(block + 2048, c); }
};

}  // namespace
OCTAVO_END
