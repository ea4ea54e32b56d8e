// What the quantized panels share: how quads of 16 columns lie in a block, and scales. Knows no format.
//
// A block is 32 columns x kSpan k, done in steps of 32 k. Of a step, column half c (16 columns) has 8 quads of four k each,
// a quad is one 64-byte vector: byte l*4 + t belongs to column c*16 + l. A format is a struct of
//   kBlock (bytes), kSpan (k), kZero (zero point), kMax (largest code), kMin (has minima), kGroups (scales a step: 1, or 2
//   for groups of 16) and, for step s of a block: quad<q>(block, s, c); d(block, s, c, group), m(block, s, c);
//   code(block, s, column, k).
// Codes of more than four bits have their low nibbles as those of four and the rest in planes behind them.
#pragma once
#include "../simd/simd.h"

OCTAVO_BEGIN
namespace {

// 4 rows of nibbles a half: low ones are quads 0..3, high ones 4..7.
template <int Q>
inline simd::I nibble_quad(const uint8_t* at, int c) {
  const simd::I v = simd::loadi(at + (c * 4 + Q % 4) * 64);
  if constexpr (Q < 4) return simd::nibble_lo(v);
  return simd::nibble_hi(v);
}
inline int nibble_code(const uint8_t* at, int column, int k) {
  const uint8_t v = at[(column / 16 * 4 + k % 16 / 4) * 64 + column % 16 * 4 + k % 4];
  return k < 16 ? v & 15 : v >> 4;
}

// 8 rows of bytes a half.
template <int Q>
inline simd::I byte_quad(const uint8_t* at, int c) {
  return simd::loadi(at + (c * 8 + Q) * 64);
}
inline int byte_code(const uint8_t* at, int column, int k) {
  return at[(column / 16 * 8 + k / 4) * 64 + column % 16 * 4 + k % 4];
}

// Bits at FROM of every byte moved to TO and masked; what crosses a byte is masked away.
template <int FROM, int TO>
inline simd::I plane_bits(simd::I plane, int32_t mask) {
  if constexpr (FROM < TO) plane = simd::shl_i<TO - FROM>(plane);
  if constexpr (FROM > TO) plane = simd::shr_i<FROM - TO>(plane);
  return simd::and_i(plane, simd::seti(mask));
}

inline simd::F half_scales(const uint8_t* at, int c) {
  return simd::load_f16(reinterpret_cast<const uint16_t*>(at) + c * 16);
}

}  // namespace
OCTAVO_END
