// The table of weight formats: each packed layout as the Format that linears and the embedding call. Blocks of 32 and floats;
// super-blocks are in formats_super.cc and formats_rare.cc, so that no compilation takes too long.
#include "../formats/bf16.h"
#include "../formats/f16.h"
#include "../formats/f32.h"
#include "packed_linear.h"

OCTAVO_BEGIN
namespace {

inline i64 no_scratch(i64) { return 0; }

template <class W>
i64 float_panel(i64 K) {
  return K * 32 * static_cast<i64>(sizeof(typename W::Element));
}

// As packed(), over k in [k0, k1).
template <class W, int R, int NV>
void floats(const uint8_t* w, i64 v0, i64 v1, i64 k0, i64 k1, i64 K, const float* x, i64 rows, float* out, i64 ld) {
  for (i64 v = v0; v < v1; v += NV) {
    const auto* at = reinterpret_cast<const typename W::Element*>(w + v / 2 * float_panel<W>(K));
    row_tiles<R>(rows, [&](i64 r, auto n) {
      float_tile<W, n.value, NV>(at, static_cast<int>(v % 2), k0, k1, x + r * K, K, out + r * ld + v * 16, ld);
    });
  }
}

template <class W>
void float_linear(const uint8_t* w, i64 K, i64 panels, const uint8_t* acts, i64 rows, float* out, i64 ld, const Way&) {
  const float* x = reinterpret_cast<const float*>(acts);
  const i64 vectors = panels * 2;
  // More than one tile of rows: k in blocks, so that the panels of a tile stay in 24 KiB of L1 between tiles.
  constexpr i64 kPanels = kFloatVectors < 2 ? 1 : kFloatVectors / 2;
  constexpr i64 kBlockK = 24576 / (kPanels * 32 * static_cast<i64>(sizeof(typename W::Element)));
  const i64 step = rows > kFloatRows ? kBlockK : K;
  const i64 wide = rows == 1 ? vectors / kFloatWide * kFloatWide : 0;
  floats<W, 1, kFloatWide>(w, 0, wide, 0, K, K, x, rows, out, ld);
  const i64 last = vectors - (vectors - wide) % kFloatVectors;
  for (i64 v = wide; v < last; v += kFloatVectors) {
    for (i64 k = 0; k < K; k += step) {
      floats<W, kFloatRows, kFloatVectors>(w, v, v + kFloatVectors, k, least(K, k + step), K, x, rows, out, ld);
    }
  }
  if constexpr (kFloatVectors > 2) floats<W, kFloatRows, 2>(w, last, vectors, 0, K, K, x, rows, out, ld);
}

template <class W>
void float_column(const uint8_t* w, i64 K, int column, float* out) {
  const auto* at = reinterpret_cast<const typename W::Element*>(w) + column / 16 * 16;
  for (i64 k = 0; k < K; k++, at += 32) {
    float v[16];
    simd::store(v, W::load(at));
    out[k] = v[column % 16];
  }
}

template <class W>
constexpr Format kFloat = {float_panel<W>, 0, float_linear<W>, no_scratch, float_column<W>, 0, 0};

}  // namespace

OCTAVO_ENTRIES(formats,
               {"format.q4_0.p32.k4.1", &kPacked<Q4_0>},
               {"format.q4_1.p32.k4.1", &kPacked<Q4_1>},
               {"format.q5_0.p32.k4.1", &kPacked<Q5_0>},
               {"format.q5_1.p32.k4.1", &kPacked<Q5_1>},
               {"format.q8_0.p32.k4.1", &kPacked<Q8_0>},
               {"format.int8.p32.k4.1", &kPacked<Int8>},
               {"format.iq4_nl.p32.k4.1", &kPacked<Iq4_nl>},
               {"format.mxfp4.p32.k4.1", &kPacked<Mxfp4>},
               {"format.bf16.p32.k1.1", &kFloat<Bf16>},
               {"format.f16.p32.k1.1", &kFloat<F16>},
               {"format.f32.p32.k1.1", &kFloat<F32>})

OCTAVO_END
