// Register tiles of a linear, written once over formats (../formats) and the SIMD vocabulary: rows x vectors of 16 output
// columns. Knows packed panels and activation rows; nothing of phases, threads or models.
//
// Order, per output element, whatever the tile: groups ascending; the int32 dot of a group is exact, with the zero point
// folded in as -zero * sum(x); then f = fma(float(dot), d * scale, f) and, with minima, f = fma(m, scaled_sum, f). Float
// formats: f = fma(w, x, f), k ascending. A block of K that ends leaves f in `out` and the next goes on from there.
//
// Few rows read the packed bytes directly (kWide rows and fewer: several panels in flight, since one stream of loads does
// not fill the memory); from kUnpackRows on, a block of a panel is unpacked once into L1 and all rows run over it.
#pragma once
#include "../simd/simd.h"

OCTAVO_BEGIN
namespace {

#define OCTAVO_INLINE __attribute__((always_inline))

// The sizes of tiles follow from the registers: int and float sums of rows x vectors, plus weights, plus one activation.
#if defined(__AVX512F__)
// 32 zmm: 6 x 2 tiles hold 12 + 12 sums; 3 x 4 the same; floats 6 x 4 hold 24 sums.
constexpr int kWideRows = 3, kWideVectors = 4, kDirectRows = 4, kDirectVectors = 2, kTileRows = 6, kTileVectors = 2;
constexpr int kFloatRows = 6, kFloatVectors = 4, kFloatWide = 8;
#elif defined(__AVX2__)
// 16 ymm, two a vector: 4 x 1 tiles hold 8 sums of 16 bits, the float sums live in L1; floats 6 x 1 hold 12 sums.
constexpr int kWideRows = 1, kWideVectors = 4, kDirectRows = 4, kDirectVectors = 1, kTileRows = 4, kTileVectors = 1;
constexpr int kFloatRows = 6, kFloatVectors = 1, kFloatWide = 4;
#else
// 16 xmm, four a vector.
constexpr int kWideRows = 1, kWideVectors = 2, kDirectRows = 2, kDirectVectors = 1, kTileRows = 2, kTileVectors = 1;
constexpr int kFloatRows = 2, kFloatVectors = 1, kFloatWide = 2;
#endif
constexpr i64 kUnpackRows = 9;    // below, unpacking costs more than the repeated masks and shifts save (spike: 8..10 equal)
constexpr i64 kUnpackGroups = 24;  // groups of an unpacked block: 24 x 1.25 KiB fit a 32 KiB L1 beside 6 rows of acts
constexpr i64 kAhead = 4;          // blocks (2.5 to 5 KiB) that the weight stream is prefetched ahead

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
  const int8_t* x(i64 r) const { return reinterpret_cast<const int8_t*>(acts + r * stride); }
  const float* scale(i64 r) const { return act_scale(acts + r * stride, K); }
  const float* scaled_sum(i64 r) const { return act_scaled_sum(acts + r * stride, K); }
  const int32_t* sum16(i64 r) const { return act_sum16(acts + r * stride, K); }
  Rows from(i64 r) const { return {acts + r * stride, stride, K}; }
};

// What the zero point adds to the dot of group s of block b: nothing, or -zero * the sum of the activations.
template <class W>
inline OCTAVO_INLINE int32_t zero_part(const int32_t* sum16, i64 b, int s) {
  if constexpr (W::kZero == 0) return 0;
  if constexpr (W::kGroups == 2) return -W::kZero * sum16[b * 2 + s];
  return -W::kZero * (sum16[b * 2] + sum16[b * 2 + 1]);
}

// One block of NV vectors x R rows: `quads(v, i, hi)` gives the weights, `d(v, s)` and `m(v)` the scales. The ints of a
// block are summed into dots and then into f.
template <class W, int R, int NV, class Quads, class D, class Min>
inline OCTAVO_INLINE void block(const Rows& rows, i64 b, simd::F (&f)[R][NV], Quads quads, D d, Min m) {
  using namespace simd;
  Dot<W::kMax> dot[R][NV][W::kGroups];
  int32_t zero[R][W::kGroups];
  unroll<0, R>([&](auto r) OCTAVO_INLINE {
    unroll<0, W::kGroups>([&](auto s) OCTAVO_INLINE {
      zero[r.value][s.value] = zero_part<W>(rows.sum16(r.value), b, s.value);
      unroll<0, NV>([&](auto v) OCTAVO_INLINE { dot[r.value][v.value][s.value].start(zero[r.value][s.value]); });
    });
  });
  unroll<0, 4>([&](auto i) OCTAVO_INLINE {
    constexpr int kStep = i.value;
    I lo[NV], hi[NV];
    unroll<0, NV>([&](auto v) OCTAVO_INLINE { lo[v.value] = quads(v.value, kStep, hi[v.value]); });
    unroll<0, R>([&](auto r) OCTAVO_INLINE {
      const int8_t* x = rows.x(r.value) + b * 32 + kStep * 4;
      unroll<0, NV>([&](auto v) OCTAVO_INLINE {
        if constexpr (W::kGroups == 1) {
          dot[r.value][v.value][0].template step<2 * kStep>(lo[v.value], quad(x));
          dot[r.value][v.value][0].template step<2 * kStep + 1>(hi[v.value], quad(x + 16));
        } else {
          dot[r.value][v.value][0].template step<kStep>(lo[v.value], quad(x));
          dot[r.value][v.value][1].template step<kStep>(hi[v.value], quad(x + 16));
        }
      });
    });
  });
  unroll<0, NV>([&](auto v) OCTAVO_INLINE {
    unroll<0, W::kGroups>([&](auto s) OCTAVO_INLINE {
      const F scale = d(v.value, s.value);
      unroll<0, R>([&](auto r) OCTAVO_INLINE {
        const I sum = dot[r.value][v.value][s.value].total(zero[r.value][s.value]);
        F& to = f[r.value][v.value];
        to = fma(to_f(sum), mul(scale, set1(rows.scale(r.value)[b])), to);
      });
    });
    if constexpr (W::kMin) {
      const F minimum = m(v.value);
      unroll<0, R>([&](auto r) OCTAVO_INLINE {
        F& to = f[r.value][v.value];
        to = fma(minimum, set1(rows.scaled_sum(r.value)[b]), to);
      });
    }
  });
}

// R rows x NV vectors over the packed bytes, whole K. Vector v is half (half + v) % 2 of panel (half + v) / 2.
template <class W, int R, int NV>
void direct_tile(const uint8_t* w, int half, const Rows& rows, float* out, i64 ld) {
  using namespace simd;
  const i64 blocks = rows.K / 32, panel = blocks * W::kBlock;
  F f[R][NV];
  unroll<0, R>([&](auto r) OCTAVO_INLINE { unroll<0, NV>([&](auto v) OCTAVO_INLINE { f[r.value][v.value] = zero(); }); });
  constexpr int kPanels = NV < 2 ? 1 : NV / 2;
  for (i64 b = 0; b < blocks; b++) {
    const uint8_t* at = w + b * W::kBlock;
    // The last blocks of a panel fetch the first ones of the panel that comes after all kPanels.
    const uint8_t* ahead = at + kAhead * W::kBlock + (b + kAhead < blocks ? 0 : (kPanels - 1) * panel);
    unroll<0, kPanels>([&](auto p) OCTAVO_INLINE {
      for (i64 i = 0; i < W::kBlock; i += 64) prefetch(ahead + p.value * panel + i);
    });
    const auto place = [&](int v) OCTAVO_INLINE { return NV == 1 ? at : at + v / 2 * panel; };
    const auto column = [&](int v) OCTAVO_INLINE { return NV == 1 ? half : v % 2; };
    block<W, R, NV>(
        rows, b, f, [&](int v, int i, I& hi) OCTAVO_INLINE { return W::quads(place(v), column(v), i, hi); },
        [&](int v, int s) OCTAVO_INLINE { return W::d(place(v), column(v), s); },
        [&](int v) OCTAVO_INLINE { return W::m(place(v), column(v)); });
  }
  unroll<0, R>([&](auto r) OCTAVO_INLINE {
    unroll<0, NV>([&](auto v) OCTAVO_INLINE { store(out + r.value * ld + v.value * 16, f[r.value][v.value]); });
  });
}

// An unpacked block: quads [8][2 halves] of 64 bytes, then [kGroups d, m][32] floats.
template <class W>
constexpr i64 unpacked_bytes() {
  return 1024 + (W::kGroups + W::kMin) * 128;
}
template <class W>
void unpack(const uint8_t* w, i64 blocks, uint8_t* out) {
  using namespace simd;
  for (i64 b = 0; b < blocks; b++, w += W::kBlock, out += unpacked_bytes<W>()) {
    for (i64 i = 0; i < W::kBlock; i += 64) prefetch(w + kAhead * W::kBlock + i);
    float* scales = reinterpret_cast<float*>(out + 1024);
    unroll<0, 2>([&](auto c) OCTAVO_INLINE {
      unroll<0, 4>([&](auto i) OCTAVO_INLINE {
        I hi;
        storei(out + (i.value * 2 + c.value) * 64, W::quads(w, c.value, i.value, hi));
        storei(out + ((i.value + 4) * 2 + c.value) * 64, hi);
      });
      for (int s = 0; s < W::kGroups; s++) store(scales + s * 32 + c.value * 16, W::d(w, c.value, s));
      if constexpr (W::kMin) store(scales + W::kGroups * 32 + c.value * 16, W::m(w, c.value));
    });
  }
}

// R rows x NV vectors over `blocks` unpacked blocks that start at block b0 of K; from block 1 on f goes on from `out`.
template <class W, int R, int NV>
void unpacked_tile(const uint8_t* u, int half, i64 b0, i64 blocks, const Rows& rows, float* out, i64 ld) {
  using namespace simd;
  F f[R][NV];
  unroll<0, R>([&](auto r) OCTAVO_INLINE {
    unroll<0, NV>([&](auto v) OCTAVO_INLINE {
      f[r.value][v.value] = b0 ? load(out + r.value * ld + v.value * 16) : zero();
    });
  });
  for (i64 b = b0; b < b0 + blocks; b++, u += unpacked_bytes<W>()) {
    const float* scales = reinterpret_cast<const float*>(u + 1024);
    const auto column = [&](int v) OCTAVO_INLINE { return NV == 1 ? half : v; };
    block<W, R, NV>(
        rows, b, f,
        [&](int v, int i, I& hi) OCTAVO_INLINE {
          hi = loadi(u + ((i + 4) * 2 + column(v)) * 64);
          return loadi(u + (i * 2 + column(v)) * 64);
        },
        [&](int v, int s) OCTAVO_INLINE { return load(scales + s * 32 + column(v) * 16); },
        [&](int v) OCTAVO_INLINE { return load(scales + W::kGroups * 32 + column(v) * 16); });
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
