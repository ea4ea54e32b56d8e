// Steps of a panel taken apart in a thread's scratch, where enough rows pay for it: per 32 k 1024 bytes of codes (8 rows of
// quads a half), 32 float d (32 more for a second group), as many m where there are minima. Of super-blocks int32 scales in
// place of d and pairs of minima in place of m, and behind 256 k 32 float d and, with minima, e. Same numbers, so the same bits
// as from the format itself. Formats with equal codes and scales share the type, and with it the compiled tiles.
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

template <int ZERO, int MAX, int GROUPS, bool MIN>
struct UnpackedSuper {
  static constexpr i64 kStep = 1024 + 128 * (GROUPS + MIN), kBlock = 8 * kStep + 128 * (1 + MIN), kSpan = 256;
  static constexpr int kZero = ZERO, kMax = MAX, kGroups = GROUPS, kScaleMax = 0;
  static constexpr bool kMin = MIN;
  template <int Q>
  static inline simd::I quad(const uint8_t* block, i64 s, int c) {
    return byte_quad<Q>(block + s * kStep, c);
  }
  static inline simd::I scale(const uint8_t* block, i64 s, int c, int group) {
    return simd::loadi(block + s * kStep + 1024 + group * 128 + c * 64);
  }
  static inline simd::I minima(const uint8_t* block, i64 s, int c) { return scale(block, s, c, GROUPS); }
  static inline simd::F d(const uint8_t* block, int c) {
    return simd::load(reinterpret_cast<const float*>(block + 8 * kStep) + c * 16);
  }
  static inline simd::F e(const uint8_t* block, int c) { return d(block + 128, c); }
};
template <class W>
using UnpackedOf = std::conditional_t<kSuper<W>, UnpackedSuper<W::kZero, W::kMax, W::kGroups, W::kMin>,
                                      Unpacked<W::kZero, W::kMax, W::kGroups, W::kMin>>;

// Pairs of minima of a step of a super-block, lane by lane, as those of its two halves of activations (ActGroup::sum16).
template <class W>
inline simd::I minima_of(const uint8_t* block, i64 s, int c) {
  if constexpr (std::is_same_v<W, UnpackedOf<W>>) {
    return W::minima(block, s, c);
  } else {
    const simd::I first = W::minimum(block, s, c, 0);
    return simd::or_i(first, simd::shl_i<16>(W::kGroups == 1 ? first : W::minimum(block, s, c, 1)));
  }
}

// Half c of one step: quads [Q, 8).
template <class W, int Q>
inline void unpack_quads(const uint8_t* block, i64 s, int c, uint8_t* to) {
  simd::storei(to + (c * 8 + Q) * 64, W::template quad<Q>(block, s, c));
  if constexpr (Q < 7) unpack_quads<W, Q + 1>(block, s, c, to);
}
// Whole super-blocks at w.
template <class W>
void unpack_super(const uint8_t* w, i64 steps, uint8_t* to) {
  using To = UnpackedOf<W>;
  for (i64 b = 0; b < steps; b += 8, w += W::kBlock, to += To::kBlock) {
    for (int c = 0; c < 2; c++) {
      for (i64 s = 0; s < 8; s++) {
        uint8_t* step = to + s * To::kStep;
        unpack_quads<W, 0>(w, s, c, step);
        for (int group = 0; group < W::kGroups; group++) {
          simd::storei(step + 1024 + group * 128 + c * 64, W::scale(w, s, c, group));
        }
        if constexpr (W::kMin) simd::storei(step + 1024 + W::kGroups * 128 + c * 64, minima_of<W>(w, s, c));
      }
      float* ends = reinterpret_cast<float*>(to + 8 * To::kStep) + c * 16;
      simd::store(ends, W::d(w, c));
      if constexpr (W::kMin) simd::store(ends + 32, W::e(w, c));
    }
  }
}
// Steps one by one, the first of the blocks at w.
template <class W>
void unpack_steps(const uint8_t* w, i64 steps, uint8_t* to) {
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

// The first `steps` of the blocks at w to as many blocks at `to`.
template <class W>
inline void unpack(const uint8_t* w, i64 steps, uint8_t* to) {
  if constexpr (kSuper<W>) unpack_super<W>(w, steps, to);
  else unpack_steps<W>(w, steps, to);
}

}  // namespace
OCTAVO_END
