// A linear on the matrix unit of a processor (AMX, int8): 16 rows x 16 columns over a chunk of steps of 32 k. The int32 dot of
// a step is exact and its scales are applied in the order of linear_tile.h, so that every bit is that of the other tiles.
// Knows unpacked chunks of activations and panels; nothing of phases, threads or models.
//
// A product takes 16 cycles, whatever is done in it: a group of 32 k fills half of the unit. What it gives, the scales turn
// into floats: 48 instructions (64 with minima) for 16 products of 32 k. Any instruction of the unit takes the second of the
// two ports of 512 bits from other code for some 300 cycles, so the two must not alternate: first the dots of a whole
// chunk are stored, then their scales are applied. A product's sums are stored three products later, since the instructions
// of the unit begin in order and a store waits 52 cycles for its product. Rows lie in blocks of 16, so that a tile reads
// lines that follow each other with addresses that need no arithmetic, which would share the one port that is left.
//
// One thread of a Xeon of family 6, model 167, Q4_1, 512 rows, K 512 (1536 within 3 %), tiles alone, GOP/s: dots and scales step by
// step in turns, rows as linear_tile.h reads them 615; a step or two ahead 610 to 640; in blocks of rows 750; chunks
// of 8 steps 776, of 16 800, of 24 613, of 32 565 (what was stored leaves L1). Codes as bf16, which the unit multiplies as exactly and
// gives as floats: 640, since they are twice the bytes. Alone, the dots are 20 cycles a step and the scales 32; vector
// dots with their scales take 96. In a prefill of SmolLM2 (512 rows, two threads) the tiles of before took 133 ms, these 117;
// chunks of 12 steps 129, of 18 134 (122 unless the next columns are fetched, which do not fit), of 8 steps of both
// halves of a panel 130; beginning the next tile's products before the scales 125 to 132, as that shuts the port for longer;
// 16 panels instead of 8, and fetching the next rows: no difference.
#pragma once
#include "../formats/unpacked.h"
#include "linear_tile.h"
#include "matrix_unit.h"

#if HAS_MATRIX_TILES
OCTAVO_BEGIN
namespace {

constexpr i64 kMatrixSteps = 9;  // of a chunk, at most
constexpr i64 kMatrixPanels = 8;  // whose chunks lie ready beside each other
// A step of 16 rows: codes [row][32], [row]{scale, scaled sum}. A step of 16 columns: codes [quad][column][4], d, m.
constexpr i64 kMatrixCodes = kMatrixRows * 32, kMatrixStep = kMatrixCodes + 2 * kMatrixRows * 4;
constexpr i64 kMatrixChunk = kMatrixSteps * kMatrixStep;
constexpr i64 kMatrixDots = kMatrixRows * 64;  // bytes of a step

// What a thread needs of its scratch.
struct MatrixRoom {
  uint8_t *rows, *dots, *columns;
  explicit MatrixRoom(uint8_t* at)
      : rows(at), dots(rows + kMatrixChunk), columns(dots + kMatrixSteps * kMatrixDots) {}
  static constexpr i64 kBytes = kMatrixChunk + kMatrixSteps * kMatrixDots + kMatrixPanels * 2 * kMatrixChunk;
  uint8_t* half(i64 panel, int c) const { return columns + (panel * 2 + c) * kMatrixChunk; }
};

// Steps [b0, b1) of n rows to `to`; rows that are not there are 0.
inline void matrix_rows(const Rows& rows, int n, i64 b0, i64 b1, uint8_t* to) {
  for (int r = 0; r < kMatrixRows; r++) {
    uint8_t* at = to;
    for (i64 b = b0; b < b1; b++, at += kMatrixStep) {
      constexpr ActGroup kNone = {};
      const ActGroup& group = r < n ? rows.group(r, b) : kNone;
      __builtin_memcpy(at + r * 32, group.x, 32);
      __builtin_memcpy(at + kMatrixCodes + r * 8, &group.scale, 8);  // and scaled_sum
    }
  }
}

// Half c of steps [b0, b1) of the panel whose step b0 stands at w. Codes with a zero point become signed, the others stay as
// they are, up to 255.
template <class W>
inline void matrix_columns(const uint8_t* w, i64 b0, i64 b1, int c, uint8_t* to) {
  constexpr i64 kSteps = W::kSpan / 32;
  const simd::I zero = simd::seti(static_cast<int32_t>(W::kZero * 0x01010101u));
  for (i64 b = 0; b < b1 - b0; b++, to += kMatrixStep) {
    const uint8_t* block = w + b / kSteps * W::kBlock;
    const i64 s = b % kSteps;
    unroll<0, 8>([&](auto q) OCTAVO_INLINE {
      const simd::I codes = W::template quad<q.value>(block, s, c);
      simd::storei(to + q.value * 64, W::kZero > 0 ? simd::sub_bytes(codes, zero) : codes);
    });
    float* scales = reinterpret_cast<float*>(to + kMatrixCodes);
    simd::store(scales, W::d(block, s, c, 0));
    if constexpr (W::kMin) simd::store(scales + kMatrixRows, W::m(block, s, c, 0));
  }
}

// Registers: 0 to 3 sums (16 rows x 16), 4 and 5 activations (16 rows x 32 bytes), 6 and 7 weights (8 quads x 64 bytes).
inline void matrix_shapes() {
  MatrixShapes shapes;
  for (int t = 0; t < 4; t++) shapes.shape(t, kMatrixRows, 64);
  for (int t = 4; t < 6; t++) shapes.shape(t, kMatrixRows, 32), shapes.shape(t + 2, 8, 64);
  shapes.load();
}

#define OCTAVO_MATRIX_PRODUCT(sums, acts, weights)                          \
  do {                                                                      \
    OCTAVO_TILE_ZERO(sums);                                                 \
    OCTAVO_TILE_LOAD(acts, x, 32);                                          \
    OCTAVO_TILE_LOAD(weights, w, 64);                                       \
    if constexpr (SIGNED) OCTAVO_TILE_SIGNED(sums, acts, weights);          \
    else OCTAVO_TILE_UNSIGNED(sums, acts, weights);                         \
  } while (false)
// A step at x and w is begun in one of four sets of registers.
template <bool SIGNED, int SET>
inline OCTAVO_INLINE void matrix_product(const uint8_t* x, const uint8_t* w) {
  if constexpr (SET == 0) OCTAVO_MATRIX_PRODUCT(0, 4, 6);
  if constexpr (SET == 1) OCTAVO_MATRIX_PRODUCT(1, 5, 7);
  if constexpr (SET == 2) OCTAVO_MATRIX_PRODUCT(2, 4, 6);
  if constexpr (SET == 3) OCTAVO_MATRIX_PRODUCT(3, 5, 7);
}
#undef OCTAVO_MATRIX_PRODUCT
template <int SET>
inline OCTAVO_INLINE void matrix_keep(uint8_t* dots) {
  if constexpr (SET == 0) OCTAVO_TILE_STORE(0, dots, 64);
  if constexpr (SET == 1) OCTAVO_TILE_STORE(1, dots, 64);
  if constexpr (SET == 2) OCTAVO_TILE_STORE(2, dots, 64);
  if constexpr (SET == 3) OCTAVO_TILE_STORE(3, dots, 64);
}

// Four steps from b on: their products begin, those begun three steps before are stored. FIRST: there are none before; ENDS: not
// all four steps need be there.
template <bool SIGNED, bool FIRST, bool ENDS>
inline OCTAVO_INLINE void matrix_four(const uint8_t* x, const uint8_t* w, i64 b, i64 steps, uint8_t* dots) {
  constexpr int kLate = 3;
  unroll<0, 4>([&](auto i) OCTAVO_INLINE {
    constexpr i64 n = i.value;
    if (!ENDS || b + n < steps) matrix_product<SIGNED, n>(x + n * kMatrixStep, w + n * kMatrixStep);
    if constexpr (!FIRST || n >= kLate) {
      if (!ENDS || b + n < steps + kLate) matrix_keep<(n + 4 - kLate) % 4>(dots + (n - kLate) * kMatrixDots);
    }
  });
}

// Dots of all steps of a chunk.
template <bool SIGNED>
__attribute__((noinline)) void matrix_dots(const uint8_t* x, const uint8_t* w, i64 steps, uint8_t* dots) {
  matrix_four<SIGNED, true, true>(x, w, 0, steps, dots);
  for (i64 b = 4; b < steps + 3; b += 4) {
    x += 4 * kMatrixStep, w += 4 * kMatrixStep, dots += 4 * kMatrixDots;
    if (b + 4 <= steps) {
      matrix_four<SIGNED, false, false>(x, w, b, steps, dots);
    } else {
      matrix_four<SIGNED, false, true>(x, w, b, steps, dots);
    }
  }
}

// Scales of a chunk's steps on their dots: into n rows of `out`, which they begin or go on from. `next` is fetched meanwhile, as
// many bytes as were read at w.
template <bool MIN>
__attribute__((noinline)) void matrix_scales(const uint8_t* x, const uint8_t* w, i64 steps, const uint8_t* dots, bool begin, int n,
                                             float* out, i64 ld, const uint8_t* next) {
  using namespace simd;
  constexpr int R = kMatrixRows;
  F f[R];
  unroll<0, R>([&](auto r) OCTAVO_INLINE { f[r.value] = begin || r.value >= n ? zero() : load(out + r.value * ld); });
  for (i64 b = 0; b < steps; b++, x += kMatrixStep, w += kMatrixStep, dots += kMatrixDots, next += kMatrixStep) {
    unroll<0, kMatrixStep / 64>([&](auto i) OCTAVO_INLINE { prefetch(next + i.value * 64); });
    const auto* acts = reinterpret_cast<const float*>(x + kMatrixCodes);
    const auto* scales = reinterpret_cast<const float*>(w + kMatrixCodes);
    const F d = load(scales);
    unroll<0, R>([&](auto r) OCTAVO_INLINE {
      f[r.value] = fma(to_f(loadi(dots + r.value * 64)), mul(d, set1(acts[2 * r.value])), f[r.value]);
    });
    if constexpr (MIN) {
      const F m = load(scales + R);
      unroll<0, R>([&](auto r) OCTAVO_INLINE { f[r.value] = fma(m, set1(acts[2 * r.value + 1]), f[r.value]); });
    }
  }
  unroll<0, R>([&](auto r) OCTAVO_INLINE {
    if (r.value < n) store(out + r.value * ld, f[r.value]);
  });
}

}  // namespace
OCTAVO_END
#endif
