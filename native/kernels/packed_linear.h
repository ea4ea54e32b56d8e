// Products of packed panels: chooses tiles by the number of rows; bits do not depend on the choice. Included by the tables
// of formats (formats*.cc), one after the other compiled for each ISA. Knows nothing of phases.
#pragma once
#include <type_traits>

#include "../formats/codebook.h"
#include "../formats/int8.h"
#include "../formats/q2_k.h"
#include "../formats/q3_k.h"
#include "../formats/q4_0.h"
#include "../formats/q4_1.h"
#include "../formats/q4_k.h"
#include "../formats/q5_0.h"
#include "../formats/q5_1.h"
#include "../formats/q5_k.h"
#include "../formats/q6_k.h"
#include "../formats/q8_0.h"
#include "../formats/tq2_0.h"
#include "../formats/unpacked.h"
#include "linear_tile.h"
#include "matrix_super.h"
#include "matrix_tile.h"
#include "super_tile.h"

OCTAVO_BEGIN
namespace {

template <class W>
i64 packed_panel(i64 K) {
  return K / W::kSpan * W::kBlock;
}

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
// Two threads of a Zen 5, K 2048, 512 rows, direct / unpacked: IQ4_XS 1,221 / 1,379, IQ2_S 1,058 / 1,214.
// A format that is rarely used always unpacks from two rows on, whatever was measured: its own tiles for more rows than one
// would be most of what is compiled.
constexpr i64 kRareRows = 2;
template <class W>
constexpr i64 kUnpackRows = kSuper<W> ? 12 : 0;
template <>
constexpr i64 kUnpackRows<Grouped<Q2_K>> = 12;
template <>
constexpr i64 kUnpackRows<Grouped<Q3_K>> = 12;
template <>
constexpr i64 kUnpackRows<Grouped<Q4_K>> = 16;
template <>
constexpr i64 kUnpackRows<Grouped<Q5_K>> = 16;
template <>
constexpr i64 kUnpackRows<Grouped<Iq4_xs>> = 12;
template <class T, int GROUPS, int UNIT>
constexpr i64 kUnpackRows<Grid<T, GROUPS, UNIT>> = kRareRows;
template <>
constexpr i64 kUnpackRows<Tq2_0> = kRareRows;
#if defined(__AVX512F__)
template <>
constexpr i64 kUnpackRows<Mxfp4> = 12;
template <>
constexpr i64 kUnpackRows<Grouped<Q6_K>> = 12;
#else
template <>
constexpr i64 kUnpackRows<Mxfp4> = 16;
template <>
constexpr i64 kUnpackRows<Q5_0> = 16;
template <>
constexpr i64 kUnpackRows<Grouped<Q6_K>> = 8;
#endif
// Rows from which the matrix unit does it (Way.matrix_rows): below, what it takes to arrange columns is not paid back. Two threads
// of a Xeon with AMX, SmolLM2, a decode step of 32 rows: 1,590 tok/s from 32 rows on, 1,725 from 48. Groups of 16 with floats as
// scales would fill a quarter of the unit.
template <class W>
constexpr bool kMatrix = kSuper<W> || W::kGroups == 1;
template <class W>
constexpr i64 kMatrixLeast = kSuper<W> ? 16 : kMatrix<W> ? 48 : 0;
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
  const i64 panel = K / UnpackedOf<W>::kSpan * UnpackedOf<W>::kBlock;
#if HAS_MATRIX_TILES
  if constexpr (kSuper<W>) return panel > SuperRoom<W>::kBytes ? panel : SuperRoom<W>::kBytes;
  if (W::kGroups == 1) return panel > MatrixRoom::kBytes ? panel : MatrixRoom::kBytes;
#endif
  return panel;
}

// One tile of rows: panels in a single stream, prefetched some steps ahead, but no less than 4.5 KiB: with 8 steps of 264
// to 430 bytes TQ2_0, Q2_K and Q3_K reached 61, 58 and 58 GB/s where Q4_K had 71.
constexpr i64 kAheadLeast = 4608;
template <class W, int R, int NV>
void one_tile(const uint8_t* w, i64 panels, const Rows& acts, i64 rows, float* out, i64 ld, i64 ahead_steps) {
  constexpr i64 kStep = W::kBlock / (W::kSpan / 32);
  const i64 bytes = ahead_steps * kStep < kAheadLeast ? kAheadLeast : ahead_steps * kStep;
  for (i64 p = 0; p < panels; p++, w += packed_panel<W>(acts.K), out += 32) {
    for (int v = 0; v < 2; v += NV) {
      const uint8_t* from = w + bytes;
      const Ahead ahead = {from, v == 0 ? from + acts.K / 32 * kStep : from, (kStep + 63) / 64};
      with_rows<R>(rows, [&](auto n) { tile_of<W, n.value, NV>(w, 0, acts.K / 32, v, ahead, acts, out + v * 16, ld); });
    }
  }
}

// Several tiles of rows over a chunk of steps, which stays in L1: as it is packed (OPEN is W), or unpacked first. Each tile asks for its
// part of the next chunk, so that memory is read evenly. Where the first tile or the unpacking read it all, the rest left the
// memory idle: 8, 16 and 32 rows of Q4_K took 306, 470 and 913 us against 206, 391 and 709.
template <class W, class OPEN>
void many_tiles(const uint8_t* w, i64 panels, const Rows& acts, i64 rows, float* out, i64 ld, uint8_t* scratch) {
  constexpr i64 kStep = W::kBlock / (W::kSpan / 32);
  constexpr bool kUnpacks = !std::is_same_v<OPEN, W>;
  const i64 steps = acts.K / 32, chunk = chunk_of<W>(steps, rows);
  const i64 tiles = (rows + kTileRows - 1) / kTileRows * (2 / kTileVectors);
  const i64 lines = (kStep + 64 * tiles - 1) / (64 * tiles);
  for (i64 p = 0; p < panels; p++, out += 32) {
    for (i64 b0 = 0; b0 < steps; b0 += chunk) {
      const i64 b1 = least(steps, b0 + chunk), bytes = (b1 - b0) * kStep;
      Ahead ahead = {w + bytes, w + 2 * bytes, lines};
      if constexpr (kUnpacks) unpack<W>(w, b1 - b0, scratch);
      const uint8_t* ready = kUnpacks ? scratch : w;
      row_tiles<kTileRows>(rows, [&](i64 r, auto n) {
        for (int v = 0; v < 2; v += kTileVectors) {
          tile_of<OPEN, n.value, kTileVectors>(ready, b0, b1, v, ahead, acts.from(r), out + r * ld + v * 16, ld);
          ahead.from += (b1 - b0) * lines * 64;
        }
      });
      w += bytes;
    }
  }
}

#if HAS_MATRIX_TILES
// Panels of the matrix unit: a chunk of steps of some panels, unpacked, against all rows, 16 by 16. What comes next is fetched
// meanwhile, spread over the tiles: packed bytes, and in matrix_scales what was unpacked.
template <class W>
void matrix_panels(const uint8_t* w, i64 panels, const Rows& acts, i64 rows, float* out, i64 ld, uint8_t* scratch) {
  constexpr i64 kStep = W::kBlock / (W::kSpan / 32), kEach = W::kSpan / 32;
  const MatrixRoom room(scratch);
  const i64 steps = acts.K / 32, panel_bytes = packed_panel<W>(acts.K);
  const i64 chunks = (steps + kMatrixSteps - 1) / kMatrixSteps;
  const i64 chunk = kEach > 1 ? kMatrixSteps / kEach * kEach : (steps + chunks - 1) / chunks;
  const i64 blocks = (rows + kMatrixRows - 1) / kMatrixRows;
  for (i64 b0 = 0; b0 < steps; b0 += chunk) {
    const i64 b1 = least(steps, b0 + chunk), bytes = (b1 - b0) * kStep;
    const uint8_t* at = w + b0 * kStep;
    const i64 next = b1 < steps ? bytes : panels * panel_bytes - b0 * kStep, lines = (bytes / 64 + blocks - 1) / blocks;
    for (i64 p = 0; p < panels; p++) {
      for (int c = 0; c < 2; c++) matrix_columns<W>(at + p * panel_bytes, b0, b1, c, room.half(p, c));
    }
    for (i64 block = 0; block < blocks; block++) {
      const i64 r = block * kMatrixRows;
      const int n = static_cast<int>(least(kMatrixRows, rows - r));
      matrix_rows(acts.from(r), n, b0, b1, room.rows);
      for (i64 p = 0; p < panels; p++) {
        const uint8_t* ahead = at + p * panel_bytes + next + block * lines * 64;
        for (i64 i = 0; i < lines; i++) simd::prefetch(ahead + i * 64);
        for (int c = 0; c < 2; c++) {
          const uint8_t *half = room.half(p, c), *following = p + 1 < panels || c == 0 ? half + kMatrixChunk : room.half(0, 0);
          matrix_dots<(W::kZero > 0)>(room.rows, half, b1 - b0, room.dots);
          matrix_scales<W::kMin>(room.rows, half, b1 - b0, room.dots, b0 == 0, n, out + r * ld + p * 32 + c * 16, ld, following);
        }
      }
    }
  }
}

template <class W>
void matrix_linear(const uint8_t* w, i64 panels, const Rows& acts, i64 rows, float* out, i64 ld, uint8_t* scratch) {
  matrix_shapes();
  for (i64 p = 0; p < panels; p += kMatrixPanels, w += kMatrixPanels * packed_panel<W>(acts.K), out += kMatrixPanels * 32) {
    matrix_panels<W>(w, least(kMatrixPanels, panels - p), acts, rows, out, ld, scratch);
  }
  MatrixShapes::release();
}
#endif

template <class W>
void packed_linear(const uint8_t* w, i64 K, i64 panels, const uint8_t* acts, i64 rows, float* out, i64 ld,
                   const Way& way) {
  const Rows from = {acts, act_row_bytes(K, kSuper<W> ? 256 : 32), K};
  if (rows == 1) return one_tile<W, 1, 2>(w, panels, from, 1, out, ld, way.ahead_steps);
#if HAS_MATRIX_TILES
  if constexpr (kMatrix<W>) {
    if (way.matrix_rows != 0 && rows >= way.matrix_rows) {
      if constexpr (kSuper<W>) return super_linear<W>(w, panels, from, rows, out, ld, way.scratch);
      else return matrix_linear<W>(w, panels, from, rows, out, ld, way.scratch);
    }
  }
#endif
  if constexpr (kUnpackRows<W> == kRareRows) {
    many_tiles<W, UnpackedOf<W>>(w, panels, from, rows, out, ld, way.scratch);
  } else {
    if (rows <= kTileRows) return one_tile<W, kTileRows, kTileVectors>(w, panels, from, rows, out, ld, way.ahead_steps);
    const bool unpacks = way.unpack_rows != 0 && rows >= way.unpack_rows;
    const auto tiles = unpacks ? many_tiles<W, UnpackedOf<W>> : many_tiles<W, W>;
    tiles(w, panels, from, rows, out, ld, way.scratch);
  }
}

// d * (q - zero) + m, product and sum rounded once each in every variant: equal to dequantizing the file.
template <class W>
void packed_column(const uint8_t* w, i64 K, int column, float* out) {
  const int c = column / 16, lane = column % 16;
  for (i64 b = 0; b < K / 32; b++) {
    const i64 step = b % (W::kSpan / 32);
    const uint8_t* block = w + b / (W::kSpan / 32) * W::kBlock;
    for (int s = 0; s < W::kGroups; s++) {
      float d[16], m[16];
      simd::store(d, W::d(block, step, c, s));
      if constexpr (W::kMin) simd::store(m, W::m(block, step, c, s));
      for (int k = s * 32 / W::kGroups; k < (s + 1) * 32 / W::kGroups; k++) {
        const float value = d[lane] * static_cast<float>(W::code(block, step, column, k) - W::kZero);
        out[b * 32 + k] = W::kMin ? value + m[lane] : value;
      }
    }
  }
}

template <class W>
constexpr Format kPacked = {packed_panel<W>, 1, packed_linear<W>, packed_scratch<W>, packed_column<W>,
                              kUnpackRows<W>, kMatrixLeast<W>};
// Super-blocks as groups, and summed in integers.
template <class W>
constexpr Format kGrouped = kPacked<Grouped<W>>;
template <class W>
constexpr Format kSummed = {packed_panel<W>, 1, packed_linear<W>, packed_scratch<W>, packed_column<Grouped<W>>,
                              kUnpackRows<W>, kMatrixLeast<W>};

}  // namespace
OCTAVO_END
