// Steps of a panel taken apart in a thread's scratch, where enough rows pay for it: per 32 k 1024 bytes of codes (8 rows of
// quads a half), 32 float d (32 more for a second group), as many m where there are minima. Same codes, same d and m, so the
// same bits as from the format itself. Formats with equal codes and scales share the type, and with it the compiled tiles.
#pragma once
#include "blocks.h"

OCTAVO_BEGIN
namespace {

template <int ZERO, int MAX, int GROUPS, bool MIN>
struct Unpacked {
  static constexpr i64 kBlock = 1024 + 128 * GROUPS * (1 + MIN), kSpan = 32;
  static constexpr int kZero = ZERO, kMax = MAX, kGroups = GROUPS;
  static constexpr bool kMin = MIN;
  template <int Q>
  static inline simd::I quad(const uint8_t* block, i64, int c) {
    return byte_quad<Q>(block, c);
  }
  static inline simd::F floats(const uint8_t* at, int c) { return simd::load(reinterpret_cast<const float*>(at) + c * 16); }
  static inline simd::F d(const uint8_t* block, i64, int c, int group) { return floats(block + 1024 + group * 128, c); }
  static inline simd::F m(const uint8_t* block, i64, int c, int group) {
    return floats(block + 1024 + (kGroups + group) * 128, c);
  }
};
template <class W>
using UnpackedOf = Unpacked<W::kZero, W::kMax, W::kGroups, W::kMin>;

// Half c of one step: quads [Q, 8).
template <class W, int Q>
inline void unpack_quads(const uint8_t* block, i64 s, int c, uint8_t* to) {
  simd::storei(to + (c * 8 + Q) * 64, W::template quad<Q>(block, s, c));
  if constexpr (Q < 7) unpack_quads<W, Q + 1>(block, s, c, to);
}
// The first steps of the blocks at w to as many blocks at `to`.
template <class W>
void unpack(const uint8_t* w, i64 steps, uint8_t* to) {
  constexpr i64 kSteps = W::kSpan / 32;
  constexpr int kGroups = W::kGroups;
  for (i64 b = 0; b < steps; b++, to += UnpackedOf<W>::kBlock) {
    const uint8_t* block = w + b / kSteps * W::kBlock;
    const i64 s = b % kSteps;
    for (int c = 0; c < 2; c++) {
      unpack_quads<W, 0>(block, s, c, to);
      float* scales = reinterpret_cast<float*>(to + 1024) + c * 16;
      for (int group = 0; group < kGroups; group++) {
        simd::store(scales + group * 32, W::d(block, s, c, group));
        if constexpr (W::kMin) simd::store(scales + (kGroups + group) * 32, W::m(block, s, c, group));
      }
    }
  }
}

}  // namespace
OCTAVO_END
