// q4_1.p32.k4.1: 512 nibble bytes, 32 half d, 32 half m; value d * q + m.
#pragma once
#include "blocks.h"

OCTAVO_BEGIN
namespace {

struct Q4_1 {
  static constexpr i64 kBlock = 640, kSpan = 32;
  static constexpr int kZero = 0, kMax = 15, kGroups = 1;
  static constexpr bool kMin = true;
  template <int Q>
  static inline simd::I quad(const uint8_t* block, i64, int c) {
    return nibble_quad<Q>(block, c);
  }
  static inline int code(const uint8_t* block, i64, int column, int k) { return nibble_code(block, column, k); }
  static inline simd::F d(const uint8_t* block, i64, int c, int) { return half_scales(block + 512, c); }
  static inline simd::F m(const uint8_t* block, i64, int c, int) { return half_scales(block + 576, c); }
};

}  // namespace
OCTAVO_END
