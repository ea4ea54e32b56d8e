// Formats whose four-bit codes are looked up in a table of 16 bytes, entries plus the zero point:
//   iq4_nl.p32.k4.1: 512 nibble bytes, 32 half d; value d * entry.
//   mxfp4.p32.k4.1: 512 nibble bytes, 32 exponents; value 2^(exponent - 128) * entry (the numbers of e2m1, doubled).
//   iq4_xs.p32.k4.1, 256 k: 8 x 512 nibble bytes, 32 half d, six bits of the scales: 4 x 32 bytes of low halves (step 2i low,
//     2i + 1 high), 2 x 32 bytes of high pairs (step 4i + n at bits 2n); value d * (scale - 32) * entry.
//   i-quants, 256 k: 8 x 512 nibble bytes, 32 half d, 32 multipliers a group; value d * multiplier * unit * entry, exact. The
//     grids of the file (runs of eight of at most eight magnitudes, with signs) are taken apart at load: 4.3 or 4.6 bits a
//     weight instead of 1.6 to 3.4.
#pragma once
#include "blocks.h"

OCTAVO_BEGIN
namespace {

struct Nl {
  static constexpr int kZero = 128, kMax = 255;  // entries reach 241; the avx2 dot has a form for bytes of zero point 128
  alignas(16) static constexpr uint8_t kTable[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
};
struct E2m1 {
  static constexpr int kZero = 12, kMax = 24;
  alignas(16) static constexpr uint8_t kTable[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
};
// Magnitudes 8, 25, 43; the same below zero from code 8 on.
struct Eighths {
  static constexpr int kZero = 128, kMax = 255;
  alignas(16) static constexpr uint8_t kTable[16] = {136, 153, 171, 128, 128, 128, 128, 128, 120, 103, 85, 128, 128, 128, 128, 128};
};
// Magnitudes 4, 12, 20, 28, 36, 44, 52, 62.
struct Quarters {
  static constexpr int kZero = 128, kMax = 255;
  alignas(16) static constexpr uint8_t kTable[16] = {132, 140, 148, 156, 164, 172, 180, 190, 124, 116, 108, 100, 92, 84, 76, 66};
};
// Magnitudes 1, 3, ..., 15.
struct Odd {
  static constexpr int kZero = 128, kMax = 255;  // as the others, to share their tiles
  alignas(16) static constexpr uint8_t kTable[16] = {129, 131, 133, 135, 137, 139, 141, 143, 127, 125, 123, 121, 119, 117, 115, 113};
};
// -1, 0, 1 in eighths, one more, or (from code 8 on) one less.
struct Shifted {
  static constexpr int kZero = 128, kMax = 255;
  alignas(16) static constexpr uint8_t kTable[16] = {121, 129, 137, 128, 128, 128, 128, 128, 119, 127, 135, 128, 128, 128, 128, 128};
};

template <class T>
struct Codebook {
  static constexpr int kZero = T::kZero, kMax = T::kMax;
  static constexpr bool kMin = false;
  template <int Q>
  static inline simd::I quad(const uint8_t* block, i64 s, int c) {
    return simd::lookup(simd::table16(T::kTable), nibble_quad<Q>(block + s * 512, c));
  }
  static inline int code(const uint8_t* block, i64 s, int column, int k) {
    return T::kTable[nibble_code(block + s * 512, column, k)];
  }
};

struct Iq4_nl : Codebook<Nl> {
  static constexpr i64 kBlock = 576, kSpan = 32;
  static constexpr int kGroups = 1;
  static inline simd::F d(const uint8_t* block, i64, int c, int) { return half_scales(block + 512, c); }
};

struct Mxfp4 : Codebook<E2m1> {
  static constexpr i64 kBlock = 544, kSpan = 32;
  static constexpr int kGroups = 1;
  // Half of 2^(e - 127): the exponent less one, where that is above 0; else 2^-128 and 2^-127, which are denormal.
  static inline simd::F d(const uint8_t* block, i64, int c, int) {
    using namespace simd;
    const I e = load_u8(block + 512 + c * 16);
    const I small = add_i(shl_i<21>(e), seti(0x00200000));  // of e = 0 and 1
    return as_f(select_i(gt_i(e, seti(1)), shl_i<23>(sub_i(e, seti(1))), small));
  }
};

struct Iq4_xs : Codebook<Nl> {
  static constexpr i64 kBlock = 4352, kSpan = 256;
  static constexpr int kGroups = 1, kScaleMax = 0;
  static inline simd::I scale(const uint8_t* block, i64 s, int c, int) {
    using namespace simd;
    const I low = shr_by(load_u8(block + 4160 + s / 2 * 32 + c * 16), static_cast<int>(s % 2 * 4));
    const I high = shr_by(load_u8(block + 4288 + s / 4 * 32 + c * 16), static_cast<int>(s % 4 * 2));
    return sub_i(or_i(and_i(low, seti(15)), shl_i<4>(and_i(high, seti(3)))), seti(32));
  }
  static inline simd::F d(const uint8_t* block, int c) { return half_scales(block + 4096, c); }
};

// UNIT: of the entries, 1 / UNIT.
template <class T, int GROUPS, int UNIT>
struct Grid : Codebook<T> {
  static constexpr i64 kBlock = 4160 + 256 * GROUPS, kSpan = 256;
  static constexpr int kGroups = GROUPS;
  static inline simd::F d(const uint8_t* block, i64 s, int c, int group) {
    using namespace simd;
    const F multiplier = to_f(load_u8(block + 4160 + (s * GROUPS + group) * 32 + c * 16));
    return mul(half_scales(block + 4096, c), mul(multiplier, set1(1.0f / UNIT)));
  }
};
using Iq3_s = Grid<Odd, 1, 1>;
using Iq3_xxs = Grid<Quarters, 1, 4>;
using Iq2_s = Grid<Eighths, 2, 8>;
using Iq2_xs = Grid<Eighths, 2, 8>;
using Iq2_xxs = Grid<Eighths, 1, 8>;
using Iq1_m = Grid<Shifted, 2, 8>;
using Iq1_s = Grid<Shifted, 1, 8>;

}  // namespace
OCTAVO_END
