// q8_0.p32.k4.1: 1024 bytes of weight + 128, 32 half d; value d * (q - 128).
#pragma once
#include "blocks.h"

OCTAVO_BEGIN
namespace {

struct Q8_0 {
  static constexpr i64 kBlock = 1088;
  static constexpr int kZero = 128, kMax = 255, kGroups = 1;
  static constexpr bool kMin = false;
  static inline simd::I quads(const uint8_t* block, int c, int i, simd::I& hi) { return byte_quads(block, c, i, hi); }
  static inline int code(const uint8_t* block, int column, int k) { return byte_code(block, column, k); }
  static inline simd::F d(const uint8_t* block, int c, int) { return half_scales(block + 1024, c); }
  static inline simd::F m(const uint8_t*, int) { return simd::zero(); }
};

}  // namespace
OCTAVO_END
