// q4_0.p32.k4.1: 512 nibble bytes, 32 half d; value d * (q - 8).
#pragma once
#include "blocks.h"

OCTAVO_BEGIN
namespace {

struct Q4_0 {
  static constexpr i64 kBlock = 576, kSpan = 32;
  static constexpr int kZero = 8, kMax = 15, kGroups = 1;
  static constexpr bool kMin = false;
  template <int Q>
  static inline simd::I quad(const uint8_t* block, i64, int c) {
    return nibble_quad<Q>(block, c);
  }
  static inline int code(const uint8_t* block, i64, int column, int k) { return nibble_code(block, column, k); }
  static inline simd::F d(const uint8_t* block, i64, int c, int) { return half_scales(block + 512, c); }
};

}  // namespace
OCTAVO_END
