// Register tiles over super-blocks: 256 k whose groups have whole numbers as scales and which share one float (formats/blocks.h).
// Their activations share one scale over the same 256 k, so that all but the end is exact.
//
// Order, per output element, whatever the tile: super-blocks ascending; dots of groups times their scales are summed in int32,
// sums of activations times minima as well; then t = d * float(sum), with minima t = fma(e, float(sum of minima), t), and f =
// fma(t, scale, f). Where the activations are wide (kernel.h) the same once more with their rests. Bounds: 256 * 127 * 4096
// of products, 256 * 127 * 63 of minima.
//
// f stands in `out` between super-blocks: a 6 x 2 tile has 12 registers of dots and 12 of sums.
#pragma once
#include "../formats/unpacked.h"
#include "linear_tile.h"

OCTAVO_BEGIN
namespace {

constexpr i64 kSuperSteps = 8;  // of 32 k

// The groups of one super-block of R rows, wherever they lie.
template <int R>
struct SuperRows {
  const ActGroup* at[R];
  const ActGroup& group(i64 r, i64 s) const { return at[r][s]; }
};

// Sums of activations times minima of step s.
template <class W, int R, int NV, class Half>
inline OCTAVO_INLINE void minima_step(const uint8_t* w, i64 s, Half half, const SuperRows<R>& rows, simd::I (&sums)[R][NV]) {
  using namespace simd;
  unroll<0, NV>([&](auto v) OCTAVO_INLINE {
    const I minima = minima_of<W>(w, s, half(v.value));
    unroll<0, R>([&](auto r) OCTAVO_INLINE {
      I& to = sums[r.value][v.value];
      to = dot_i16(to, minima, bcast4(reinterpret_cast<const int8_t*>(rows.group(r.value, s).sum16)));
    });
  });
}

// R rows x NV vectors of the super-block at w, into out[row[r]], which the first `fresh` rows begin and the others go on from.
template <class W, int R, int NV>
void super_block(const uint8_t* w, int half, Ahead& next, const SuperRows<R>& rows, const i64* row, i64 fresh, float* out,
                 i64 ld) {
  using namespace simd;
  const auto side = [&](int v) OCTAVO_INLINE { return NV == 1 ? half : v; };
  Ahead ahead = next;
  // Of few rows minima go along, since their bits lie with those of the scales; of many there are no registers for both.
  constexpr bool kAlong = W::kMin && R <= 2;
  I sums[R][NV], of_minima[R][NV];
  unroll<0, R>([&](auto r) OCTAVO_INLINE {
    unroll<0, NV>([&](auto v) OCTAVO_INLINE { sums[r.value][v.value] = of_minima[r.value][v.value] = zeroi(); });
  });
  for (i64 s = 0; s < kSuperSteps; s++) {
    if (ahead.from < ahead.end) {
      for (i64 i = 0; i < ahead.lines; i++, ahead.from += 64) prefetch(ahead.from);
    }
    unroll<0, W::kGroups>([&](auto g) OCTAVO_INLINE {
      DotOf<W> dot[R][NV];
      dots_of<W, g.value>(rows, s, dot, w, side);
      unroll<0, NV>([&](auto v) OCTAVO_INLINE {
        const I scale = W::scale(w, s, side(v.value), g.value);
        unroll<0, R>([&](auto r) OCTAVO_INLINE {
          I& to = sums[r.value][v.value];
          to = add_i(to, mul_i(dot[r.value][v.value].total(), scale));
        });
      });
    });
    if constexpr (kAlong) minima_step<W>(w, s, side, rows, of_minima);
  }
  next = ahead;
  F t[R][NV];
  unroll<0, NV>([&](auto v) OCTAVO_INLINE {
    const F d = W::d(w, side(v.value));
    unroll<0, R>([&](auto r) OCTAVO_INLINE { t[r.value][v.value] = mul(d, to_f(sums[r.value][v.value])); });
  });
  if constexpr (W::kMin) {
    if constexpr (!kAlong) {
      for (i64 s = 0; s < kSuperSteps; s++) minima_step<W>(w, s, side, rows, of_minima);
    }
    unroll<0, NV>([&](auto v) OCTAVO_INLINE {
      const F e = W::e(w, side(v.value));
      unroll<0, R>([&](auto r) OCTAVO_INLINE {
        t[r.value][v.value] = fma(e, to_f(of_minima[r.value][v.value]), t[r.value][v.value]);
      });
    });
  }
  unroll<0, R>([&](auto r) OCTAVO_INLINE {
    const F scale = set1(rows.group(r.value, 0).scale);
    unroll<0, NV>([&](auto v) OCTAVO_INLINE {
      float* to = out + row[r.value] * ld + v.value * 16;
      store(to, fma(t[r.value][v.value], scale, r.value < fresh ? zero() : load(to)));
    });
  });
}

// Calls body(Index<rows>) for 1 <= rows <= R.
template <int R, class Fn>
inline void with_rows(i64 rows, const Fn& body) {
  if constexpr (R > 1) {
    if (rows < R) return with_rows<R - 1>(rows, body);
  }
  body(Index<R>{});
}

// As packed_tile, over whole super-blocks: b0 and b1 are multiples of 8. Rows and the rests of wide ones go together, as
// many as a tile holds, so that one row reads its weights once.
template <class W, int R, int NV>
void super_tile(const uint8_t* w, i64 b0, i64 b1, int half, Ahead ahead, const Rows& rows, float* out, i64 ld) {
  const Rows rests = {rows.acts + rests_at(rows.K), rows.stride, rows.K};
  for (i64 b = b0; b < b1; b += kSuperSteps, w += W::kBlock) {
    const ActGroup* at[2 * R];
    i64 row[2 * R], count = R;
    for (i64 r = 0; r < R; r++) at[r] = &rows.group(r, b), row[r] = r;
    for (i64 r = 0; r < R; r++) {
      const ActGroup& rest = rests.group(r, b);
      if (rest.scale != 0) at[count] = &rest, row[count++] = r;
    }
    for (i64 first = 0; first < count; first += kTileRows) {
      with_rows<kTileRows>(count - first, [&](auto n) {
        SuperRows<n.value> some;
        for (int i = 0; i < n.value; i++) some.at[i] = at[first + i];
        super_block<W, n.value, NV>(w, half, ahead, some, row + first, b ? 0 : R - first, out, ld);
      });
    }
  }
}

// The tile of a format.
template <class W, int R, int NV>
inline void tile_of(const uint8_t* w, i64 b0, i64 b1, int half, Ahead ahead, const Rows& rows, float* out, i64 ld) {
  if constexpr (kSuper<W>) super_tile<W, R, NV>(w, b0, b1, half, ahead, rows, out, ld);
  else packed_tile<W, R, NV>(w, b0, b1, half, ahead, rows, out, ld);
}

}  // namespace
OCTAVO_END
