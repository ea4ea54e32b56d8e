// Register tiles of a linear, written once over formats (../formats) and the SIMD vocabulary: rows x vectors of 16 output
// columns. Knows packed panels and activation rows; nothing of phases, threads or models.
//
// Order, per output element, whatever the tile: groups ascending; the int32 dot of a group is exact, with the zero point
// folded in as -zero * sum(x); then f = fma(float(dot), d * scale, f) and, with minima, f = fma(m, scaled_sum, f), where groups
// are 16 with scale * float(sum of the 16) for the scaled sum. Super-blocks in integers: super_tile.h. Float formats: f = fma(w, x, f), k ascending. A block of K that ends leaves f in `out` and the next goes on from there.
//
// Tiles read the packed bytes directly, or steps of a panel that were unpacked in the scratch (packed_linear.h says when).
// Tried and dropped, two threads of a Zen 5, one row from memory that gave 42 to 44 GB/s to a plain read: two panels at
// once, prefetched 4, 8 and 16 steps ahead: Q4_K 34, 35 and 36 GB/s, Q6_K 38, 39 and 38, Q4_1 36, 35 and 36. One panel, 8
// and 16 steps ahead: Q4_K 42 and 42, Q6_K 41 and 41, Q4_1 43 and 43; in a decode step of SmolLM2 12 and 16 steps
// took 4 to 7 % longer than 8 in one state of the host, 16 took 10 % less in another, where memory gave 64 GB/s (autotune.py
// asks at start). One thread of a Zen 5: direct 4 x 2 tiles on avx512
// (SmolLM2's linears, Q4_1, tokens a second, 16, 32 and 512 rows: 2,670, 2,820, 3,220 against 2,700, 2,800, 3,310 of 6 x
// 2). On avx2, GOP/s of 512 rows, K 1536: Q4_1 4 x 1 tiles 298, 6 x 1 304; 4 x 1 212 while gcc reassociated the sums of 16
// bits (all products first, spilled). Sums of Q5_0 and Q6_K widened every 4 and 2 products, against sums that begin at the
// zero point's share: direct 4 x 1 191 and 113 against 214 and 137, unpacked 6 x 1 295 and 217 against 286 and 230: Q5_0
// lost there. Q8_0 widened to 16 bits, 4 x 1: 119, now 186.
#pragma once
#include "../simd/simd.h"

OCTAVO_BEGIN
namespace {

#define OCTAVO_INLINE __attribute__((always_inline))

inline i64 least(i64 a, i64 b) { return a < b ? a : b; }

// The sizes of tiles follow from the registers: int and float sums of rows x vectors, plus weights, plus one activation.
#if defined(__AVX512F__)
// 32 zmm: 6 x 2 tiles hold 12 + 12 sums; floats 6 x 4 hold 24.
constexpr int kTileRows = 6, kTileVectors = 2;
constexpr int kFloatRows = 6, kFloatVectors = 4, kFloatWide = 8;
#elif defined(__AVX2__)
// 16 ymm, two a vector: 6 x 1 tiles hold 12 sums of 16 bits, the float sums live in L1; floats 6 x 1 hold 12 sums.
constexpr int kTileRows = 6, kTileVectors = 1;
constexpr int kFloatRows = 6, kFloatVectors = 1, kFloatWide = 4;
#else
// 16 xmm, four a vector.
constexpr int kTileRows = 2, kTileVectors = 1;
constexpr int kFloatRows = 2, kFloatVectors = 1, kFloatWide = 2;
#endif

template <int N>
struct Index {
  static constexpr int value = N;
};
template <int I, int N, class Fn>
inline OCTAVO_INLINE void unroll(Fn&& body) {
  if constexpr (I < N) {
    body(Index<I>{});
    unroll<I + 1, N>(body);
  }
}

struct Rows {
  const uint8_t* acts;
  i64 stride, K;
  const ActGroup& group(i64 r, i64 b) const { return act_groups(acts + r * stride)[b]; }
  Rows from(i64 r) const { return {acts + r * stride, stride, K}; }
};

// What sums the products of a group of a format.
template <class W>
using DotOf = simd::Dot<W::kMax, W::kZero, W::kGroups == 1 ? 8 : 4>;

// Dots of group S of step b (32 k): R rows x NV vectors. half(v): the half of the block that vector v is.
template <class W, int S, int R, int NV, class From, class Half>
inline OCTAVO_INLINE void dots_of(const From& rows, i64 b, DotOf<W> (&dot)[R][NV], const uint8_t* block, Half half) {
  using namespace simd;
  const i64 s = b % (W::kSpan / 32);
  constexpr int kEach = W::kGroups == 1 ? 2 : 1;  // 8 quads a group, or 4
  using D = DotOf<W>;
  unroll<0, R>([&](auto r) OCTAVO_INLINE {
    const ActGroup& acts = rows.group(r.value, b);
    const auto from = D::start_of(acts.x + S * 16, kEach == 2 ? acts.sum : acts.sum16[S]);
    unroll<0, NV>([&](auto v) OCTAVO_INLINE { dot[r.value][v.value].start(from); });
  });
  // Quads q and q + 4 in turn: nibble formats hold both in one vector.
  unroll<0, 4 * kEach>([&](auto n) OCTAVO_INLINE {
    constexpr int q = kEach == 2 ? n.value / 2 + n.value % 2 * 4 : S * 4 + n.value;
    I w[NV];
    unroll<0, NV>([&](auto v) OCTAVO_INLINE { w[v.value] = W::template quad<q>(block, s, half(v.value)); });
    unroll<0, R>([&](auto r) OCTAVO_INLINE {
      const Quad x = quad(rows.group(r.value, b).x + q * 4);
      unroll<0, NV>([&](auto v) OCTAVO_INLINE { dot[r.value][v.value].template step<n.value>(w[v.value], x); });
    });
  });
}

// The same with their scales, into f.
template <class W, int S, int R, int NV, class Half>
inline OCTAVO_INLINE void group(const Rows& rows, i64 b, simd::F (&f)[R][NV], const uint8_t* block, Half half) {
  using namespace simd;
  const i64 s = b % (W::kSpan / 32);
  DotOf<W> dot[R][NV];
  dots_of<W, S>(rows, b, dot, block, half);
  unroll<0, NV>([&](auto v) OCTAVO_INLINE {
    const F d = W::d(block, s, half(v.value), S);
    unroll<0, R>([&](auto r) OCTAVO_INLINE {
      F& to = f[r.value][v.value];
      to = fma(to_f(dot[r.value][v.value].total()), mul(d, set1(rows.group(r.value, b).scale)), to);
    });
    if constexpr (W::kMin) {
      const F m = W::m(block, s, half(v.value), S);
      unroll<0, R>([&](auto r) OCTAVO_INLINE {
        F& to = f[r.value][v.value];
        if constexpr (W::kGroups == 1) {
          to = fma(m, set1(rows.group(r.value, b).scaled_sum), to);
        } else {
          const ActGroup& acts = rows.group(r.value, b);
          to = fma(m, mul(set1(acts.scale), to_f(seti(acts.sum16[S]))), to);
        }
      });
    }
  });
}

// Lines of 64 bytes that a tile asks memory for while it works: `lines` of them a step, up to `end`.
struct Ahead {
  const uint8_t *from, *end;
  i64 lines;
};

// R rows x NV vectors over steps [b0, b1) of the packed bytes of a panel: both halves, or only `half`. From b0 > 0 on f goes
// on from `out`. w is where step b0 stands.
template <class W, int R, int NV>
void packed_tile(const uint8_t* w, i64 b0, i64 b1, int half, Ahead ahead, const Rows& rows, float* out, i64 ld) {
  using namespace simd;
  constexpr i64 kSteps = W::kSpan / 32;  // of a block
  F f[R][NV];
  unroll<0, R>([&](auto r) OCTAVO_INLINE {
    unroll<0, NV>([&](auto v) OCTAVO_INLINE {
      f[r.value][v.value] = b0 ? load(out + r.value * ld + v.value * 16) : zero();
    });
  });
  for (i64 b = b0; b < b1; b++) {
    if (ahead.from < ahead.end) {
      for (i64 i = 0; i < ahead.lines; i++, ahead.from += 64) prefetch(ahead.from);
    }
    const auto side = [&](int v) OCTAVO_INLINE { return NV == 1 ? half : v; };
    const uint8_t* at = w + (b - b0) / kSteps * W::kBlock;
    unroll<0, W::kGroups>([&](auto g) OCTAVO_INLINE { group<W, g.value>(rows, b, f, at, side); });
  }
  unroll<0, R>([&](auto r) OCTAVO_INLINE {
    unroll<0, NV>([&](auto v) OCTAVO_INLINE { store(out + r.value * ld + v.value * 16, f[r.value][v.value]); });
  });
}

// R rows x NV vectors of a float format over k in [k0, k1); from k0 > 0 on f goes on from `out`.
template <class W, int R, int NV>
void float_tile(const typename W::Element* w, int half, i64 k0, i64 k1, const float* x, i64 K, float* out, i64 ld) {
  using namespace simd;
  constexpr int kPanels = NV < 2 ? 1 : NV / 2;
  constexpr i64 kStep = 2048 / (32 * sizeof(typename W::Element));  // k that are prefetched ahead: 2 KiB a panel
  const i64 panel = K * 32;
  F f[R][NV];
  unroll<0, R>([&](auto r) OCTAVO_INLINE {
    unroll<0, NV>([&](auto v) OCTAVO_INLINE {
      f[r.value][v.value] = k0 ? load(out + r.value * ld + v.value * 16) : zero();
    });
  });
  for (i64 k = k0; k < k1; k++) {
    const typename W::Element* at = w + k * 32;
    const typename W::Element* ahead = at + kStep * 32 + (k + kStep < K ? 0 : (kPanels - 1) * panel);
    F wide[NV];
    unroll<0, NV>([&](auto v) OCTAVO_INLINE {
      const typename W::Element* from = NV == 1 ? at + half * 16 : at + v.value / 2 * panel + v.value % 2 * 16;
      if (R == 1 && (v.value % 2 == 0 || sizeof(*at) == 4)) prefetch(ahead + (from - at));
      wide[v.value] = W::load(from);
    });
    unroll<0, R>([&](auto r) OCTAVO_INLINE {
      const F a = set1(x[r.value * K + k]);
      unroll<0, NV>([&](auto v) OCTAVO_INLINE { f[r.value][v.value] = fma(wide[v.value], a, f[r.value][v.value]); });
    });
  }
  unroll<0, R>([&](auto r) OCTAVO_INLINE {
    unroll<0, NV>([&](auto v) OCTAVO_INLINE { store(out + r.value * ld + v.value * 16, f[r.value][v.value]); });
  });
}

}  // namespace
OCTAVO_END
