// q8_0.p32.k4.1: 1024 bytes of weight + 128, 32 half d; value d * (q - 128).
#pragma once
#include "blocks.h"

OCTAVO_BEGIN
namespace {

struct Q8_0 {
  static constexpr i64 kBlock = 1088, kSpan = 32;
  static constexpr int kZero = 128, kMax = 255, kGroups = 1;
  static constexpr bool kMin = false;
  template <int Q>
  static inline simd::I quad(const uint8_t* block, i64, int c) {
    return byte_quad<Q>(block, c);
  }
  static inline int code(const uint8_t* block, i64, int column, int k) { return byte_code(block, column, k); }
  static inline simd::F d(const uint8_t* block, i64, int c, int) { return half_scales(block + 1024, c); }
};

}  // namespace
OCTAVO_END
