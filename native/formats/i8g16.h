// i8g16.p32.k4.1: 1024 codes of at most 63 (Q6_K), 32 float d of k 0..15, 32 of k 16..31; value d * (q - 32).
#pragma once
#include "blocks.h"

OCTAVO_BEGIN
namespace {

struct I8G16 {
  static constexpr i64 kBlock = 1280;
  static constexpr int kZero = 32, kMax = 63, kGroups = 2;
  static constexpr bool kMin = false;
  static inline simd::I quads(const uint8_t* block, int c, int i, simd::I& hi) { return byte_quads(block, c, i, hi); }
  static inline int code(const uint8_t* block, int column, int k) { return byte_code(block, column, k); }
  static inline simd::F d(const uint8_t* block, int c, int group) { return float_scales(block + 1024 + group * 128, c); }
  static inline simd::F m(const uint8_t*, int) { return simd::zero(); }
};

}  // namespace
OCTAVO_END
