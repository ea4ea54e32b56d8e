// q4_k.p32.k4.1, 256 k: 8 x 512 nibble bytes, 32 half d, 32 half e (e = -dmin), 8 x 32 bytes of low halves (scale | minimum
// << 4), 4 x 32 bytes of high pairs; value d * scale * q + e * minimum, both products rounded once to float.
// A byte of high pairs of step s < 4 holds bits 4 and 5: scale of s, minimum of s, scale of s + 4, minimum of s + 4.
// Scales of eight bits would save four operations a vector and step and cost 2.8 % more bytes, where the stream decides.
#pragma once
#include "blocks.h"

OCTAVO_BEGIN
namespace {

struct Q4_K {
  static constexpr i64 kBlock = 4608, kSpan = 256;
  static constexpr int kZero = 0, kMax = 15, kGroups = 1;
  static constexpr bool kMin = true;
  template <int Q>
  static inline simd::I quad(const uint8_t* block, i64 s, int c) {
    return nibble_quad<Q>(block + s * 512, c);
  }
  static inline int code(const uint8_t* block, i64 s, int column, int k) { return nibble_code(block + s * 512, column, k); }
  static inline simd::I low(const uint8_t* block, i64 s, int c) { return simd::load_u8(block + 4224 + s * 32 + c * 16); }
  static inline simd::I high(const uint8_t* block, i64 s, int c) {
    return simd::shr_by(simd::load_u8(block + 4480 + (s & 3) * 32 + c * 16), static_cast<int>(s & 4));
  }
  static inline simd::F d(const uint8_t* block, i64 s, int c, int) {
    using namespace simd;
    const I top = and_i(shl_i<4>(high(block, s, c)), seti(48));
    return mul(half_scales(block + 4096, c), to_f(or_i(and_i(low(block, s, c), seti(15)), top)));
  }
  static inline simd::F m(const uint8_t* block, i64 s, int c) {
    using namespace simd;
    const I top = and_i(shl_i<2>(high(block, s, c)), seti(48));
    return mul(half_scales(block + 4160, c), to_f(or_i(shr_i<4>(low(block, s, c)), top)));
  }
};

}  // namespace
OCTAVO_END
