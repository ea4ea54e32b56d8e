// q4_0.p32.k4.1: 512 nibble bytes, 32 half d; value d * (q - 8).
#pragma once
#include "blocks.h"

OCTAVO_BEGIN
namespace {

struct Q4_0 {
  static constexpr i64 kBlock = 576;
  static constexpr int kZero = 8, kMax = 15, kGroups = 1;
  static constexpr bool kMin = false;
  static inline simd::I quads(const uint8_t* block, int c, int i, simd::I& hi) { return nibble_quads(block, c, i, hi); }
  static inline int code(const uint8_t* block, int column, int k) { return nibble_code(block, column, k); }
  static inline simd::F d(const uint8_t* block, int c, int) { return half_scales(block + 512, c); }
  static inline simd::F m(const uint8_t*, int) { return simd::zero(); }
};

}  // namespace
OCTAVO_END
