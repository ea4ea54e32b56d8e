// i8g32.p32.k4.1: 1024 codes of at most 31 (Q4_K stored 16 higher, Q5_0), 32 float d, 32 float m; value d * (q - 16) + m.
#pragma once
#include "blocks.h"

OCTAVO_BEGIN
namespace {

struct I8G32 {
  static constexpr i64 kBlock = 1280;
  static constexpr int kZero = 16, kMax = 31, kGroups = 1;
  static constexpr bool kMin = true;
  static inline simd::I quads(const uint8_t* block, int c, int i, simd::I& hi) { return byte_quads(block, c, i, hi); }
  static inline int code(const uint8_t* block, int column, int k) { return byte_code(block, column, k); }
  static inline simd::F d(const uint8_t* block, int c, int) { return float_scales(block + 1024, c); }
  static inline simd::F m(const uint8_t* block, int c) { return float_scales(block + 1152, c); }
};

}  // namespace
OCTAVO_END
