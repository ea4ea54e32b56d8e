// q4_1.p32.k4.1: 512 nibble bytes, 32 half d, 32 half m; value d * q + m.
#pragma once
#include "blocks.h"

OCTAVO_BEGIN
namespace {

struct Q4_1 {
  static constexpr i64 kBlock = 640;
  static constexpr int kZero = 0, kMax = 15, kGroups = 1;
  static constexpr bool kMin = true;
  static inline simd::I quads(const uint8_t* block, int c, int i, simd::I& hi) { return nibble_quads(block, c, i, hi); }
  static inline int code(const uint8_t* block, int column, int k) { return nibble_code(block, column, k); }
  static inline simd::F d(const uint8_t* block, int c, int) { return half_scales(block + 512, c); }
  static inline simd::F m(const uint8_t* block, int c) { return half_scales(block + 576, c); }
};

}  // namespace
OCTAVO_END
