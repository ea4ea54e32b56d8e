// Steps of a panel of format W taken apart in a thread's scratch, where enough rows pay for it: per 32 k 1024 bytes of
// codes (8 rows of quads a half), 32 float d (32 more for a second group), 32 float m where W has minima. Same codes, same
// d and m, so the same bits as from W itself.
#pragma once
#include "blocks.h"

OCTAVO_BEGIN
namespace {

template <class W>
struct Unpacked {
  static constexpr i64 kBlock = 1024 + 128 * (W::kGroups + W::kMin), kSpan = 32;
  static constexpr int kZero = W::kZero, kMax = W::kMax, kGroups = W::kGroups;
  static constexpr bool kMin = W::kMin;
  template <int Q>
  static inline simd::I quad(const uint8_t* block, i64, int c) {
    return byte_quad<Q>(block, c);
  }
  static inline simd::F floats(const uint8_t* at, int c) { return simd::load(reinterpret_cast<const float*>(at) + c * 16); }
  static inline simd::F d(const uint8_t* block, i64, int c, int group) { return floats(block + 1024 + group * 128, c); }
  static inline simd::F m(const uint8_t* block, i64, int c) { return floats(block + 1024 + 128 * kGroups, c); }

  // Half c of one step: quads [Q, 8).
  template <int Q>
  static inline void unpack_quads(const uint8_t* block, i64 s, int c, uint8_t* to) {
    simd::storei(to + (c * 8 + Q) * 64, W::template quad<Q>(block, s, c));
    if constexpr (Q < 7) unpack_quads<Q + 1>(block, s, c, to);
  }
  // The first steps of the blocks at w to as many blocks at `to`.
  static void unpack(const uint8_t* w, i64 steps, uint8_t* to) {
    constexpr i64 kSteps = W::kSpan / 32;
    for (i64 b = 0; b < steps; b++, to += kBlock) {
      const uint8_t* block = w + b / kSteps * W::kBlock;
      const i64 s = b % kSteps;
      for (int c = 0; c < 2; c++) {
        unpack_quads<0>(block, s, c, to);
        float* scales = reinterpret_cast<float*>(to + 1024) + c * 16;
        for (int group = 0; group < kGroups; group++) simd::store(scales + group * 32, W::d(block, s, c, group));
        if constexpr (kMin) simd::store(scales + kGroups * 32, W::m(block, s, c));
      }
    }
  }
};

}  // namespace
OCTAVO_END
