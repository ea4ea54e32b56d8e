// q5_0.p32.k4.1: 512 nibble bytes, 128 of fifth bits, 32 half d; value d * (q - 16).
// Half c has 64 bytes of fifth bits: byte l*4 + t, bit j is that of column c*16 + l at k = 4j + t.
#pragma once
#include "blocks.h"

OCTAVO_BEGIN
namespace {

struct Q5_0 {
  static constexpr i64 kBlock = 704, kSpan = 32;
  static constexpr int kZero = 16, kMax = 31, kGroups = 1;
  static constexpr bool kMin = false;
  template <int Q>
  static inline simd::I quad(const uint8_t* block, i64, int c) {
    const simd::I fifths = plane_bits<Q, 4>(simd::loadi(block + 512 + c * 64), 0x10101010);
    return simd::or_i(nibble_quad<Q>(block, c), fifths);
  }
  static inline int code(const uint8_t* block, i64, int column, int k) {
    const int fifth = block[512 + column * 4 + k % 4] >> k / 4 & 1;
    return nibble_code(block, column, k) | fifth << 4;
  }
  static inline simd::F d(const uint8_t* block, i64, int c, int) { return half_scales(block + 640, c); }
  static inline simd::F m(const uint8_t*, i64, int) { return simd::zero(); }
};

}  // namespace
OCTAVO_END
