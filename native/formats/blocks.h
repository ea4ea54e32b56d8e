// What the quantized panels share: how quads of 16 columns lie in a block, and scales. Knows no format.
//
// A block is 32 columns x kSpan k, done in steps of 32 k. Of a step, column half c (16 columns) has 8 quads of four k each,
// a quad is one 64-byte vector: byte l*4 + t belongs to column c*16 + l. A format is a struct of
//   kBlock (bytes), kSpan (k), kZero (zero point), kMax (largest code), kMin (has minima), kGroups (scales a step: 1, or 2
//   for groups of 16) and, for step s of a block: quad<q>(block, s, c); d(block, s, c, group), where it has minima
//   m(block, s, c, group); code(block, s, column, k).
// Super-blocks (kSuper), formats with whole numbers as scales, tell these apart: scale(block, s, c, group), of at most kScaleMax (0: signed) and,
// where there are minima, minimum(block, s, c, group), with one d(block, c) and e(block, c) for the 256 k: a weight is
// d * scale * (q - zero) + e * minimum.
// Codes of more than four bits have their low nibbles as those of four and the rest in planes behind them; codes of two and
// three bits are planes alone.
#pragma once
#include <type_traits>

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

// Two rows of pairs of bits a half, one for each 16 k: bits 2j and 2j + 1 of a byte are those of k = 4j + t. Moved to TO.
template <int Q, int TO>
inline simd::I pair_quad(const uint8_t* at, int c) {
  return plane_bits<Q % 4 * 2, TO>(simd::loadi(at + Q / 4 * 128 + c * 64), 0x03030303 << TO);
}
inline int pair_code(const uint8_t* at, int column, int k) {
  return at[k / 16 * 128 + column * 4 + k % 4] >> k % 16 / 4 * 2 & 3;
}

// A row of bits a half: bit j of a byte is that of k = 4j + t. Moved to TO.
template <int Q, int TO>
inline simd::I bit_quad(const uint8_t* at, int c) {
  return plane_bits<Q, TO>(simd::loadi(at + c * 64), 0x01010101 << TO);
}
inline int bit_code(const uint8_t* at, int column, int k) { return at[column * 4 + k % 4] >> k / 4 & 1; }

// Two numbers of six bits a step and column: 8 x 32 bytes of low halves (first | second << 4), then 4 x 32 bytes of high
// pairs: that of step s < 4 holds bits 4 and 5 of first of s, second of s, first of s + 4, second of s + 4.
inline simd::I six_low(const uint8_t* at, i64 s, int c) { return simd::load_u8(at + s * 32 + c * 16); }
inline simd::I six_high(const uint8_t* at, i64 s, int c) {
  return simd::shr_by(simd::load_u8(at + 256 + (s & 3) * 32 + c * 16), static_cast<int>(s & 4));
}
inline simd::I first_six(const uint8_t* at, i64 s, int c) {
  using namespace simd;
  return or_i(and_i(six_low(at, s, c), seti(15)), and_i(shl_i<4>(six_high(at, s, c)), seti(48)));
}
inline simd::I second_six(const uint8_t* at, i64 s, int c) {
  using namespace simd;
  return or_i(shr_i<4>(six_low(at, s, c)), and_i(shl_i<2>(six_high(at, s, c)), seti(48)));
}

template <class W, class = void>
constexpr bool kSuper = false;
template <class W>
constexpr bool kSuper<W, std::void_t<decltype(W::kScaleMax)>> = true;

// A format of super-blocks as one of groups with float scales, each a product rounded once.
template <class W>
struct Grouped {
  static constexpr i64 kBlock = W::kBlock, kSpan = W::kSpan;
  static constexpr int kZero = W::kZero, kMax = W::kMax, kGroups = W::kGroups;
  static constexpr bool kMin = W::kMin;
  template <int Q>
  static inline simd::I quad(const uint8_t* block, i64 s, int c) {
    return W::template quad<Q>(block, s, c);
  }
  static inline int code(const uint8_t* block, i64 s, int column, int k) { return W::code(block, s, column, k); }
  static inline simd::F d(const uint8_t* block, i64 s, int c, int group) {
    return simd::mul(W::d(block, c), simd::to_f(W::scale(block, s, c, group)));
  }
  static inline simd::F m(const uint8_t* block, i64 s, int c, int group) {
    return simd::mul(W::e(block, c), simd::to_f(W::minimum(block, s, c, group)));
  }
};

inline simd::F half_scales(const uint8_t* at, int c) {
  return simd::load_f16(reinterpret_cast<const uint16_t*>(at) + c * 16);
}

}  // namespace
OCTAVO_END
