// Tiles of a linear on the matrix unit of a processor (AMX, int8): up to 16 rows x 16 columns over steps of a panel that were
// unpacked with signed codes. The int32 dot of a group is exact and its scales are applied in the order of linear_tile.h, so
// that every bit is that of the other tiles. Knows packed panels and activation rows; nothing of phases, threads or models.
//
// One product takes max(rows, quads) cycles, whatever is done in it: a group of 32 k fills half of the unit, one of 16 a
// quarter, since a longer sum would mix groups. So the scales decide: 16 rows x 16 columns x 32 k are 16 cycles of products, and 48 (64
// with minima) instructions of scales on two ports. The products of the next group are begun before the scales of this one.
#pragma once
#include "../formats/unpacked.h"
#include "linear_tile.h"
#include "matrix_unit.h"

#if HAS_MATRIX_TILES
OCTAVO_BEGIN
namespace {

// Signed codes: those of the format less its zero point. Formats without one have codes up to 255, which stay unsigned. Where
// its zero point and its largest code stand no more, many formats share their tiles (compiling them takes long).
template <class W>
using SignedOf = Unpacked<(W::kZero > 0), 0, W::kGroups, W::kMin>;
template <class W>
inline void unpack_signed(const uint8_t* w, i64 steps, uint8_t* to) {
  unpack<W>(w, steps, to);
  if constexpr (W::kZero > 0) {
    const simd::I zero = simd::seti(static_cast<int32_t>(W::kZero * 0x01010101u));
    for (i64 b = 0; b < steps; b++) {
      for (int i = 0; i < 1024; i += 64) {
        uint8_t* at = to + b * UnpackedOf<W>::kBlock + i;
        simd::storei(at, simd::sub_bytes(simd::loadi(at), zero));
      }
    }
  }
}

// Registers: 0 and 1 sums (rows x 16), 2 and 3 activations (rows x bytes), 4 and 5 weights (quads x 64 bytes).
inline void matrix_shapes(int rows, int quads) {
  MatrixShapes shapes;
  for (int set = 0; set < 2; set++) {
    shapes.shape(set, rows, 64);
    shapes.shape(2 + set, rows, quads * 4);
    shapes.shape(4 + set, quads, 64);
  }
  shapes.load();
}

// Sums of one group into `dots` [rows][16]; registers of set 0 or 1, so that neighbours do not wait for each other.
#define OCTAVO_MATRIX_DOTS(sums, acts, weights)                                                      \
  do {                                                                                               \
    OCTAVO_TILE_ZERO(sums);                                                                          \
    OCTAVO_TILE_LOAD(acts, x, stride);                                                               \
    OCTAVO_TILE_LOAD(weights, w, 64);                                                                \
    if constexpr (SIGNED) OCTAVO_TILE_SIGNED(sums, acts, weights);                                   \
    else OCTAVO_TILE_UNSIGNED(sums, acts, weights);                                                  \
    OCTAVO_TILE_STORE(sums, dots, 64);                                                               \
  } while (false)
template <int SET, bool SIGNED>
inline OCTAVO_INLINE void matrix_dots(const int8_t* x, i64 stride, const uint8_t* w, int32_t* dots) {
  if constexpr (SET == 0)
    OCTAVO_MATRIX_DOTS(0, 2, 4);
  else
    OCTAVO_MATRIX_DOTS(1, 3, 5);
}
#undef OCTAVO_MATRIX_DOTS

// Scales of group S of step b on its dots; row(r): the row of activations that stands for row r of the tile.
template <class U, int S, class Row>
inline OCTAVO_INLINE void matrix_scales(const Rows& rows, i64 b, const uint8_t* block, int c, const int32_t* dots,
                                        simd::F (&f)[kMatrixRows], Row row) {
  using namespace simd;
  constexpr int R = kMatrixRows;
  const F d = U::d(block, 0, c, S);
  unroll<0, R>([&](auto r) OCTAVO_INLINE {
    const F dot = to_f(loadi(dots + r.value * 16));
    f[r.value] = fma(dot, mul(d, set1(rows.group(row(r.value), b).scale)), f[r.value]);
  });
  if constexpr (U::kMin) {
    const F m = U::m(block, 0, c, S);
    unroll<0, R>([&](auto r) OCTAVO_INLINE {
      const ActGroup& acts = rows.group(row(r.value), b);
      if constexpr (U::kGroups == 1) {
        f[r.value] = fma(m, set1(acts.scaled_sum), f[r.value]);
      } else {
        f[r.value] = fma(m, mul(set1(acts.scale), to_f(seti(acts.sum16[S]))), f[r.value]);
      }
    });
  }
}

// n rows x 16 columns (half c of a panel) over the unpacked steps [b0, b1) at w; from b0 > 0 on f goes on from `out`. The
// shape of the registers is set. WHOLE: n is 16; else the last row stands in for those that are not there, since a tile for each
// n would take minutes to compile.
template <class U, bool WHOLE>
void matrix_tile(const uint8_t* w, i64 b0, i64 b1, int c, Ahead ahead, const Rows& rows, int n, float* out, i64 ld) {
  using namespace simd;
  constexpr int R = kMatrixRows;
  const auto row = [n](int r) OCTAVO_INLINE { return WHOLE || r < n ? r : n - 1; };
  constexpr bool kSigned = U::kZero > 0;
  alignas(64) int32_t even[R * 16], odd[R * 16];
  if constexpr (!WHOLE)
    for (int i = n * 16; i < R * 16; i++) even[i] = odd[i] = 0;
  F f[R];
  unroll<0, R>([&](auto r) OCTAVO_INLINE { f[r.value] = b0 ? load(out + row(r.value) * ld) : zero(); });
  const auto block = [&](i64 b) OCTAVO_INLINE { return w + (b - b0) * U::kBlock; };
  const auto codes = [&](i64 b, int s) OCTAVO_INLINE { return block(b) + c * 512 + s * 256; };
  const auto acts = [&](i64 b, int s) OCTAVO_INLINE { return rows.group(0, b).x + s * 16; };
  const auto fetch = [&]() OCTAVO_INLINE {
    if (ahead.from < ahead.end) {
      for (i64 i = 0; i < ahead.lines; i++, ahead.from += 64) prefetch(ahead.from);
    }
  };
  matrix_dots<0, kSigned>(acts(b0, 0), rows.stride, codes(b0, 0), even);
  if constexpr (U::kGroups == 2) {
    for (i64 b = b0; b < b1; b++) {
      fetch();
      matrix_dots<1, kSigned>(acts(b, 1), rows.stride, codes(b, 1), odd);
      matrix_scales<U, 0>(rows, b, block(b), c, even, f, row);
      if (b + 1 < b1) matrix_dots<0, kSigned>(acts(b + 1, 0), rows.stride, codes(b + 1, 0), even);
      matrix_scales<U, 1>(rows, b, block(b), c, odd, f, row);
    }
  } else {
    i64 b = b0;
    for (; b + 1 < b1; b += 2) {
      fetch();
      matrix_dots<1, kSigned>(acts(b + 1, 0), rows.stride, codes(b + 1, 0), odd);
      matrix_scales<U, 0>(rows, b, block(b), c, even, f, row);
      fetch();
      if (b + 2 < b1) matrix_dots<0, kSigned>(acts(b + 2, 0), rows.stride, codes(b + 2, 0), even);
      matrix_scales<U, 0>(rows, b + 1, block(b + 1), c, odd, f, row);
    }
    if (b < b1) matrix_scales<U, 0>(rows, b, block(b), c, even, f, row);
  }
  unroll<0, R>([&](auto r) OCTAVO_INLINE {
    if (WHOLE || r.value < n) store(out + r.value * ld, f[r.value]);
  });
}

}  // namespace
OCTAVO_END
#endif
