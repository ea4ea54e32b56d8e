// What the quantized panels share: how quads of 16 columns lie in a block, and scales. Knows no format.
//
// A block is 32 columns x 32 k. Column half c (16 columns) has 8 quads of four k each, a quad is one 64-byte vector: byte
// l*4 + t belongs to column c*16 + l. A format is a struct of
//   kBlock (bytes), kZero (zero point), kMax (largest code), kMin (has minima), kGroups (scales a block: 1, or 2 for
//   groups of 16), quads(block, c, i, hi): quad i and, in hi, quad i + 4; d(block, c, group), m(block, c); code(block,
//   column, k).
#pragma once
#include "../simd/simd.h"

OCTAVO_BEGIN
namespace {

// 4 rows of nibbles a half: low ones are quads 0..3, high ones 4..7.
inline simd::I nibble_quads(const uint8_t* block, int c, int i, simd::I& hi) {
  const simd::I v = simd::loadi(block + (c * 4 + i) * 64);
  hi = simd::nibble_hi(v);
  return simd::nibble_lo(v);
}
inline int nibble_code(const uint8_t* block, int column, int k) {
  const uint8_t v = block[(column / 16 * 4 + k % 16 / 4) * 64 + column % 16 * 4 + k % 4];
  return k < 16 ? v & 15 : v >> 4;
}

// 8 rows of bytes a half.
inline simd::I byte_quads(const uint8_t* block, int c, int i, simd::I& hi) {
  hi = simd::loadi(block + (c * 8 + 4 + i) * 64);
  return simd::loadi(block + (c * 8 + i) * 64);
}
inline int byte_code(const uint8_t* block, int column, int k) {
  return block[(column / 16 * 8 + k / 4) * 64 + column % 16 * 4 + k % 4];
}

inline simd::F half_scales(const uint8_t* at, int c) {
  return simd::load_f16(reinterpret_cast<const uint16_t*>(at) + c * 16);
}
inline simd::F float_scales(const uint8_t* at, int c) { return simd::load(reinterpret_cast<const float*>(at) + c * 16); }

}  // namespace
OCTAVO_END
