// The table of weight formats: each packed layout as the Format that linears and the embedding call. Chooses tiles by the
// number of rows; bits do not depend on the choice. Knows nothing of phases.
#include "../formats/bf16.h"
#include "../formats/f16.h"
#include "../formats/f32.h"
#include "../formats/q4_0.h"
#include "../formats/q4_1.h"
#include "../formats/q4_k.h"
#include "../formats/q5_0.h"
#include "../formats/q6_k.h"
#include "../formats/q8_0.h"
#include "../formats/unpacked.h"
#include "linear_tile.h"

OCTAVO_BEGIN
namespace {

inline i64 least(i64 a, i64 b) { return a < b ? a : b; }

// Calls body(Index<rows>) for 1 <= rows <= R.
template <int R, class Fn>
inline void with_rows(i64 rows, const Fn& body) {
  if constexpr (R > 1) {
    if (rows < R) return with_rows<R - 1>(rows, body);
  }
  body(Index<R>{});
}

template <class W>
i64 packed_panel(i64 K) {
  return K / W::kSpan * W::kBlock;
}
inline i64 no_scratch(i64) { return 0; }

// Calls body(first row, Index<rows>) for tiles of at most R rows, of even sizes.
template <int R, class Fn>
inline void row_tiles(i64 rows, const Fn& body) {
  const i64 tiles = (rows + R - 1) / R, least_rows = rows / tiles, larger = rows % tiles;
  for (i64 t = 0, r = 0; t < tiles; t++) {
    const i64 here = least_rows + (t < larger);
    with_rows<R>(here, [&](auto n) { body(r, n); });
    r += here;
  }
}

// Rows from which a chunk is unpacked first where no machine was measured (kernel.h, Tuning); 0: never. Where decoding a code
// takes more than a nibble's mask and shift, the tiles of many rows pay for it again and again. Two threads of a Zen 5, weights
// from memory that gave 48 GB/s, GOP/s unpacked from 12 and 8 rows / from 16 and 12: Q4_K (K 1536) 12 rows 1,127 / 1,167; Q6_K
// (K 8960) 8 rows 735 / 821. Q4_1 (K 576) unpacked from 32 / 64 rows: 32 rows 1,295 / 1,392, 128 rows 1,379 / 1,402; direct 512
// rows 1,375 against 1,380. execution/autotune.py on the same processor, times over 8 to 64 rows against these choices: Q4_K
// never 1.04 to 1.06, from 8 rows 1.01, 24 1.00; Q6_K never 1.05 to 1.08, 8 1.00, 16 1.00; Q4_1 and Q8_0 from 8 1.10, 32 1.02.
// One core by CPU time, before tiles shared the reading, K 1536, direct / unpacked:
//   avx512  Q5_0 32 rows 717 / 667, 512: 734 / 744
//   avx2    Q4_K 8 rows 200 / 184, 32: 257 / 284, 512: 261 / 308   Q6_K 8: 127 / 137, 32: 150 / 210, 512: 175 / 226
//           Q5_0 8: 178 / 173, 32: 215 / 259, 512: 217 / 276   Q4_1 8: 235 / 179, 32: 294 / 268, 512: 304 / 311
template <class W>
constexpr i64 kUnpackRows = 0;
template <>
constexpr i64 kUnpackRows<Q4_K> = 16;
#if defined(__AVX512F__)
template <>
constexpr i64 kUnpackRows<Q6_K> = 12;
#else
template <>
constexpr i64 kUnpackRows<Q5_0> = 16;
template <>
constexpr i64 kUnpackRows<Q6_K> = 8;
#endif
// Steps that all rows run over before the next ones: at most 18, packed 16 KiB with the next ones, unpacked 23 KiB, beside
// the activations in an L1 of 32 KiB. Chunks of 32 are slower (Q4_K, 8 rows, K 1536: 815 against 1,070 GOP/s). For many rows
// a chunk is the whole panel, since each tile loads and stores its sums (512 rows: chunks of 16 cost 5 %).
constexpr i64 kChunk = 18, kWholeRows = 96;
template <class W>
i64 chunk_of(i64 steps, i64 rows) {
  if (rows >= kWholeRows) return steps;
  if (W::kSpan > 32) return kChunk / (W::kSpan / 32) * (W::kSpan / 32);
  const i64 chunks = (steps + kChunk - 1) / kChunk;
  return (steps + chunks - 1) / chunks;
}

template <class W>
i64 packed_scratch(i64 K) {
  return K / 32 * Unpacked<W>::kBlock;
}

// One tile of rows: panels in a single stream, prefetched some steps ahead.
template <class W, int R, int NV>
void one_tile(const uint8_t* w, i64 panels, const Rows& acts, i64 rows, float* out, i64 ld, i64 ahead_steps) {
  constexpr i64 kStep = W::kBlock / (W::kSpan / 32);
  for (i64 p = 0; p < panels; p++, w += packed_panel<W>(acts.K), out += 32) {
    for (int v = 0; v < 2; v += NV) {
      const uint8_t* from = w + ahead_steps * kStep;
      const Ahead ahead = {from, v == 0 ? from + acts.K / 32 * kStep : from, (kStep + 63) / 64};
      with_rows<R>(rows, [&](auto n) { packed_tile<W, n.value, NV>(w, 0, acts.K / 32, v, ahead, acts, out + v * 16, ld); });
    }
  }
}

// Several tiles of rows over a chunk of steps, which stays in L1. Each asks for its part of the next chunk, so that memory
// is read evenly. Where the first tile or the unpacking read it all, the rest left the memory idle: 8, 16 and 32 rows of Q4_K
// took 306, 470 and 913 us against 206, 391 and 709.
template <class W, bool UNPACK>
void many_tiles(const uint8_t* w, i64 panels, const Rows& acts, i64 rows, float* out, i64 ld, uint8_t* scratch) {
  constexpr int kVectors = kTileVectors;
  constexpr i64 kStep = W::kBlock / (W::kSpan / 32);
  const i64 steps = acts.K / 32, chunk = chunk_of<W>(steps, rows);
  const i64 tiles = (rows + kTileRows - 1) / kTileRows * (2 / kVectors);
  const i64 lines = (kStep + 64 * tiles - 1) / (64 * tiles);
  for (i64 p = 0; p < panels; p++, out += 32) {
    for (i64 b0 = 0; b0 < steps; b0 += chunk) {
      const i64 b1 = least(steps, b0 + chunk), bytes = (b1 - b0) * kStep;
      Ahead ahead = {w + bytes, w + 2 * bytes, lines};
      if constexpr (UNPACK) Unpacked<W>::unpack(w, b1 - b0, scratch);
      for (int v = 0; v < 2; v += kVectors) {
        row_tiles<kTileRows>(rows, [&](i64 r, auto n) {
          float* to = out + r * ld + v * 16;
          if constexpr (UNPACK) {
            packed_tile<Unpacked<W>, n.value, kVectors>(scratch, b0, b1, v, ahead, acts.from(r), to, ld);
          } else {
            packed_tile<W, n.value, kVectors>(w, b0, b1, v, ahead, acts.from(r), to, ld);
          }
          ahead.from += (b1 - b0) * lines * 64;
        });
      }
      w += bytes;
    }
  }
}

template <class W>
void packed_linear(const uint8_t* w, i64 K, i64 panels, const uint8_t* acts, i64 rows, float* out, i64 ld,
                   const Way& way) {
  const Rows from = {acts, act_row_bytes(K), K};
  if (rows == 1) return one_tile<W, 1, 2>(w, panels, from, 1, out, ld, way.ahead_steps);
  if (rows <= kTileRows) return one_tile<W, kTileRows, kTileVectors>(w, panels, from, rows, out, ld, way.ahead_steps);
  const bool unpacks = way.unpack_rows != 0 && rows >= way.unpack_rows;
  const auto tiles = unpacks ? many_tiles<W, true> : many_tiles<W, false>;
  tiles(w, panels, from, rows, out, ld, way.scratch);
}

// d * (q - zero) + m, product and sum rounded once each in every variant: equal to dequantizing the file.
template <class W>
void packed_column(const uint8_t* w, i64 K, int column, float* out) {
  const int c = column / 16, lane = column % 16;
  for (i64 b = 0; b < K / 32; b++) {
    const i64 step = b % (W::kSpan / 32);
    const uint8_t* block = w + b / (W::kSpan / 32) * W::kBlock;
    float m[16];
    if constexpr (W::kMin) simd::store(m, W::m(block, step, c));
    for (int s = 0; s < W::kGroups; s++) {
      float d[16];
      simd::store(d, W::d(block, step, c, s));
      for (int k = s * 32 / W::kGroups; k < (s + 1) * 32 / W::kGroups; k++) {
        const float value = d[lane] * static_cast<float>(W::code(block, step, column, k) - W::kZero);
        out[b * 32 + k] = W::kMin ? value + m[lane] : value;
      }
    }
  }
}

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
constexpr Format kPacked = {packed_panel<W>, 1, packed_linear<W>, packed_scratch<W>, packed_column<W>,
                              kUnpackRows<W>};
template <class W>
constexpr Format kFloat = {float_panel<W>, 0, float_linear<W>, no_scratch, float_column<W>, 0};

}  // namespace

OCTAVO_ENTRIES(formats,
               {"format.q4_0.p32.k4.1", &kPacked<Q4_0>},
               {"format.q4_1.p32.k4.1", &kPacked<Q4_1>},
               {"format.q8_0.p32.k4.1", &kPacked<Q8_0>},
               {"format.q4_k.p32.k4.1", &kPacked<Q4_K>},
               {"format.q5_0.p32.k4.1", &kPacked<Q5_0>},
               {"format.q6_k.p32.k4.1", &kPacked<Q6_K>},
               {"format.bf16.p32.k1.1", &kFloat<Bf16>},
               {"format.f16.p32.k1.1", &kFloat<F16>},
               {"format.f32.p32.k1.1", &kFloat<F32>})

OCTAVO_END
