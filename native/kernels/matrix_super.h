// Super-blocks on the matrix unit of a processor (AMX, int8): 16 rows x 32 columns x 256 k at a time. Whole numbers throughout,
// so every bit is that of super_tile.h. Knows packed panels and activation rows; nothing of phases, threads or models.
//
// Codes times the scales of their groups need up to 13 bits: they are cut into two planes of bytes, high << kBits plus low, and
// the unit sums each over all 256 k: 64 k a product, where groups of 32 with a float each fill half of it and are stored
// and scaled eight times as often (matrix_tile.h). Without signs a plane is codes times three bits of the scale, at most
// 255: one product of 16 bits does two bytes. Minima meet the sums of activations as bf16, cut into multiples of 16 and the rest,
// which are exact, as is their sum in float: below 2^24.
//
// Two threads of a Xeon of family 6, model 167, GOP/s: 32 rows of Q4_K and Q6_K 1,600 and 1,180 (groups on their own: 880 and
// 720), 512 rows 2,100 and 2,200 (1,260 and 780).
//
// All rows of a super-block, and the rests of those that are wide (kernel.h), are arranged once and lie in L2, a panel of columns is
// in L1 while they pass. Products of a row block: 16 of int8 in four sums, which a product waits for less than 52 cycles, and
// 2 of bf16.
#pragma once
#include "../formats/unpacked.h"
#include "matrix_unit.h"
#include "super_tile.h"

#if HAS_MATRIX_TILES
OCTAVO_BEGIN
namespace {

constexpr i64 kSuperRows = 256;   // of a call that are arranged together
constexpr i64 kSuperBlocks = 24;  // of 16 that go through the panels together: rows, then rests of wide ones
constexpr i64 kTileBytes = 1024;  // of a register

// How a format's scaled codes become planes of bytes.
template <class W>
struct Planes {
  static constexpr bool kSigned = W::kScaleMax == 0;
  static constexpr int kBits = kSigned ? 7 : 3;  // of the low plane, or of its part of a scale
  static constexpr int kCount = !kSigned && W::kMax * W::kScaleMax < 256 ? 1 : 2;
  static_assert(kSigned ? W::kMax < 256 : W::kZero == 0 && (kCount == 1 || (W::kMax * 7 < 256 && W::kScaleMax < 64)));
};

// What a thread needs of its scratch: arranged rows, columns of a panel, sums.
template <class W>
struct SuperRoom {
  // 16 rows: four registers of codes [row][64], one of sums of activations [row][32 bf16], scales [row].
  static constexpr i64 kSums = 4 * kTileBytes, kScales = kSums + kTileBytes, kRowsBytes = kScales + kMatrixRows * 4;
  // 16 columns: four registers of each plane [quad][column][4], one of minima [pair][column][2], d and e.
  static constexpr i64 kMinima = Planes<W>::kCount * 4 * kTileBytes, kEnds = kMinima + W::kMin * kTileBytes;
  static constexpr i64 kHalfBytes = kEnds + 2 * 64;
  static constexpr i64 kDots = (Planes<W>::kCount + W::kMin) * kTileBytes;  // of 16 x 16
  static constexpr i64 kBytes = kSuperBlocks * kRowsBytes + 2 * kHalfBytes + 2 * kDots;
  uint8_t *rows, *columns, *dots;
  explicit SuperRoom(uint8_t* at)
      : rows(at), columns(rows + kSuperBlocks * kRowsBytes), dots(columns + 2 * kHalfBytes) {}
  uint8_t* half(int c) const { return columns + c * kHalfBytes; }
};

// Activations' sums as bf16 pairs (multiple of 16, rest): of the 8 groups of 32, or of the 16 halves.
template <class W>
inline void super_sums(const ActGroup* groups, uint8_t* to) {
  using namespace simd;
  alignas(64) int32_t each[32];
  for (int s = 0; s < 8; s++) {
    const ActGroup& group = groups[s];
    if constexpr (W::kGroups == 1) {
      each[2 * s] = each[2 * s + 1] = group.sum;
    } else {
      each[4 * s] = each[4 * s + 1] = group.sum16[0];
      each[4 * s + 2] = each[4 * s + 3] = group.sum16[1];
    }
  }
  alignas(64) static constexpr int32_t kParts[16] = {~15, 15, ~15, 15, ~15, 15, ~15, 15, ~15, 15, ~15, 15, ~15, 15, ~15, 15};
  const I parts = loadi(kParts);
  for (int i = 0; i < W::kGroups; i++) {
    const I bits = as_i(to_f(and_i(loadi(each + i * 16), parts)));
    store_i16(reinterpret_cast<int16_t*>(to) + i * 16, shr_i<16>(bits));
  }
}

// n rows of a super-block; rows that are not there are 0.
template <class W>
inline void super_rows(const ActGroup* const* rows, i64 n, uint8_t* to) {
  using Room = SuperRoom<W>;
  for (int r = 0; r < kMatrixRows; r++) {
    constexpr ActGroup kNone[8] = {};
    const ActGroup* groups = r < n ? rows[r] : kNone;
    for (int s = 0; s < 8; s++) __builtin_memcpy(to + s / 2 * kTileBytes + r * 64 + s % 2 * 32, groups[s].x, 32);
    if constexpr (W::kMin) {
      super_sums<W>(groups, to + Room::kSums + r * 64);
      if constexpr (W::kGroups == 1) __builtin_memset(to + Room::kSums + r * 64 + 32, 0, 32);
    }
    reinterpret_cast<float*>(to + Room::kScales)[r] = groups->scale;
  }
}

// Scaled codes of a quad as bytes of the planes.
template <class W>
inline void super_planes(simd::I codes, simd::I low, simd::I high, uint8_t* to) {
  using namespace simd;
  using P = Planes<W>;
  if constexpr (!P::kSigned) {
    storei(to, mul_16(codes, low));
    if constexpr (P::kCount == 2) storei(to + 4 * kTileBytes, mul_16(codes, high));
  } else {  // low is the scale and high what the zero point takes away, less half of the low plane
    const I even = add_16(mul_16(and_i(codes, seti(0x00ff00ff)), low), high);
    const I odd = add_16(mul_16(shr_16<8>(codes), low), high);
    const I rest = or_i(and_i(even, seti(0x007f007f)), and_i(shl_i<8>(odd), seti(0x7f007f00)));
    constexpr int32_t kOdd = static_cast<int32_t>(0xff00ff00u);
    const I whole = or_i(and_i(shr_16<P::kBits>(even), seti(0x00ff00ff)), and_i(shl_i<1>(odd), seti(kOdd)));
    storei(to, sub_bytes(rest, seti(0x40404040)));
    storei(to + 4 * kTileBytes, whole);
  }
}

// Half c of the super-block at w.
template <class W>
inline void super_columns(const uint8_t* w, int c, uint8_t* to) {
  using namespace simd;
  using P = Planes<W>;
  using Room = SuperRoom<W>;
  for (i64 s = 0; s < 8; s++) {
    uint8_t* codes = to + s * (kTileBytes / 2);
    unroll<0, W::kGroups>([&](auto g) OCTAVO_INLINE {
      const I scale = W::scale(w, s, c, g.value);
      const auto twice = [](I x) OCTAVO_INLINE { return or_i(and_i(x, seti(0xffff)), shl_i<16>(x)); };
      I low, high;
      if constexpr (P::kSigned) {
        low = twice(scale);
        high = twice(sub_i(seti(64), mul_i(scale, seti(W::kZero))));
      } else {
        low = twice(P::kCount == 1 ? scale : and_i(scale, seti(7)));
        high = twice(shr_i<P::kBits>(scale));
      }
      constexpr int kQuads = 8 / W::kGroups;
      unroll<g.value * kQuads, (g.value + 1) * kQuads>([&](auto q) OCTAVO_INLINE {
        super_planes<W>(W::template quad<q.value>(w, s, c), low, high, codes + q.value * 64);
      });
    });
    if constexpr (W::kMin) {
      unroll<0, W::kGroups>([&](auto g) OCTAVO_INLINE {
        const I minimum = shr_i<16>(as_i(to_f(W::minimum(w, s, c, g.value))));  // as bf16
        storei(to + Room::kMinima + (s * W::kGroups + g.value) * 64, or_i(minimum, shl_i<16>(minimum)));
      });
      if constexpr (W::kGroups == 1) storei(to + Room::kMinima + (8 + s) * 64, zeroi());
    }
  }
  float* ends = reinterpret_cast<float*>(to + Room::kEnds);
  store(ends, W::d(w, c));
  if constexpr (W::kMin) store(ends + 16, W::e(w, c));
}

#define OCTAVO_SUPER_PRODUCT(sums, acts, weights, from)                    \
  do {                                                                     \
    OCTAVO_TILE_LOAD(weights, from, 64);                                   \
    if constexpr (P::kSigned) OCTAVO_TILE_SIGNED(sums, acts, weights);     \
    else OCTAVO_TILE_UNSIGNED(sums, acts, weights);                        \
  } while (false)
// 64 k against both halves and planes: registers 0 and 1 sum the planes of the first half, 2 and 3 of the second; ACTS is 4 or 5.
#define OCTAVO_SUPER_PART(acts, j)                                                                           \
  do {                                                                                                       \
    const uint8_t *first = columns + (j) * kTileBytes, *second = first + Room::kHalfBytes;                   \
    OCTAVO_TILE_LOAD(acts, rows + (j) * kTileBytes, 64);                                                     \
    OCTAVO_SUPER_PRODUCT(0, acts, 6, first);                                                                 \
    OCTAVO_SUPER_PRODUCT(2, acts, 7, second);                                                                \
    if constexpr (P::kCount == 2) {                                                                          \
      OCTAVO_SUPER_PRODUCT(1, acts, 6, first + 4 * kTileBytes);                                              \
      OCTAVO_SUPER_PRODUCT(3, acts, 7, second + 4 * kTileBytes);                                             \
    }                                                                                                        \
  } while (false)
// Sums of 16 rows x 32 columns, half by half: of the low plane, the high one, minima.
template <class W>
__attribute__((noinline)) void super_dots(const uint8_t* rows, const uint8_t* columns, uint8_t* dots) {
  using P = Planes<W>;
  using Room = SuperRoom<W>;
  OCTAVO_TILE_ZERO(0);
  OCTAVO_TILE_ZERO(2);
  if constexpr (P::kCount == 2) {
    OCTAVO_TILE_ZERO(1);
    OCTAVO_TILE_ZERO(3);
  }
  OCTAVO_SUPER_PART(4, 0);
  OCTAVO_SUPER_PART(5, 1);
  OCTAVO_SUPER_PART(4, 2);
  OCTAVO_SUPER_PART(5, 3);
  uint8_t* second = dots + Room::kDots;
  if constexpr (W::kMin) {
    OCTAVO_TILE_ZERO(5);
    OCTAVO_TILE_LOAD(4, rows + Room::kSums, 64);
    OCTAVO_TILE_LOAD(6, columns + Room::kMinima, 64);
    OCTAVO_TILE_LOAD(7, columns + Room::kHalfBytes + Room::kMinima, 64);
    OCTAVO_TILE_BF16(5, 4, 6);
  }
  OCTAVO_TILE_STORE(0, dots, 64);
  if constexpr (W::kMin) {
    OCTAVO_TILE_ZERO(0);
    OCTAVO_TILE_BF16(0, 4, 7);
  }
  OCTAVO_TILE_STORE(2, second, 64);
  if constexpr (P::kCount == 2) {
    OCTAVO_TILE_STORE(1, dots + kTileBytes, 64);
    OCTAVO_TILE_STORE(3, second + kTileBytes, 64);
  }
  if constexpr (W::kMin) {
    OCTAVO_TILE_STORE(5, dots + P::kCount * kTileBytes, 64);
    OCTAVO_TILE_STORE(0, second + P::kCount * kTileBytes, 64);
  }
}
#undef OCTAVO_SUPER_PART
#undef OCTAVO_SUPER_PRODUCT

// n rows of 16 columns: sums to floats, into out[row_of[r]], which the first `fresh` rows begin and the others go on from.
template <class W>
inline void super_ends(const uint8_t* rows, const uint8_t* half, const uint8_t* dots, i64 fresh, i64 n,
                       const int32_t* row_of, float* out, i64 ld) {
  using namespace simd;
  using P = Planes<W>;
  using Room = SuperRoom<W>;
  const float* ends = reinterpret_cast<const float*>(half + Room::kEnds);
  const float* scales = reinterpret_cast<const float*>(rows + Room::kScales);
  const F d = load(ends), e = W::kMin ? load(ends + 16) : zero();
  const auto row = [&](int r) OCTAVO_INLINE {
    const uint8_t* at = dots + r * 64;
    I sum = loadi(at);
    if constexpr (P::kCount == 2) sum = add_i(sum, shl_i<P::kBits>(loadi(at + kTileBytes)));
    F t = mul(d, to_f(sum));
    if constexpr (W::kMin) t = fma(e, load(reinterpret_cast<const float*>(at + P::kCount * kTileBytes)), t);
    float* to = out + row_of[r] * ld;
    store(to, fma(t, set1(scales[r]), r < fresh ? zero() : load(to)));
  };
  if (n == kMatrixRows) {
    unroll<0, kMatrixRows>([&](auto r) OCTAVO_INLINE { row(r.value); });
  } else {
    for (int r = 0; r < static_cast<int>(n); r++) row(r);
  }
}

// All registers are whole.
inline void super_shapes() {
  MatrixShapes shapes;
  for (int t = 0; t < 8; t++) shapes.shape(t, kMatrixRows, 64);
  shapes.load();
}

// Rows of a super-block that are multiplied: all of them, then the rests of wide ones.
struct SuperList {
  const ActGroup* at[2 * kSuperRows];
  int32_t row[2 * kSuperRows];
  i64 count = 0;
  void add(const ActGroup* groups, i64 r) {
    at[count] = groups;
    row[count++] = static_cast<int32_t>(r);
  }
};

// Rows [first, first + n) of a list against super-block b of all panels; those before `fresh` begin their sums.
template <class W>
void super_pass(const uint8_t* w, i64 supers, i64 b, i64 panels, const SuperList& list, i64 first, i64 n, i64 fresh, float* out,
                i64 ld, uint8_t* scratch) {
  using Room = SuperRoom<W>;
  const Room room(scratch);
  const i64 blocks = (n + kMatrixRows - 1) / kMatrixRows, lines = (W::kBlock / 64 + blocks - 1) / blocks;
  for (i64 block = 0; block < blocks; block++) {
    super_rows<W>(list.at + first + block * kMatrixRows, n - block * kMatrixRows, room.rows + block * Room::kRowsBytes);
  }
  for (i64 p = 0; p < panels; p++) {
    const uint8_t* at = w + (p * supers + b) * W::kBlock;
    const uint8_t* next = p + 1 < panels ? at + supers * W::kBlock : w + (b + 1) * W::kBlock;
    for (int c = 0; c < 2; c++) super_columns<W>(at, c, room.half(c));
    for (i64 block = 0; block < blocks; block++, next += lines * 64) {
      const i64 r = block * kMatrixRows, here = least(n - r, kMatrixRows);
      const uint8_t* rows = room.rows + block * Room::kRowsBytes;
      for (i64 i = 0; i < lines; i++) simd::prefetch(next + i * 64);
      super_dots<W>(rows, room.columns, room.dots);
      for (int c = 0; c < 2; c++) {
        super_ends<W>(rows, room.half(c), room.dots + c * Room::kDots, fresh - first - r, here, list.row + first + r,
                      out + p * 32 + c * 16, ld);
      }
    }
  }
}

template <class W>
void super_linear(const uint8_t* w, i64 panels, const Rows& acts, i64 rows, float* out, i64 ld, uint8_t* scratch) {
  const Rows rests = {acts.acts + rests_at(acts.K), acts.stride, acts.K};
  const i64 supers = acts.K / 256;
  super_shapes();
  for (i64 r0 = 0; r0 < rows; r0 += kSuperRows) {
    const i64 r1 = least(rows, r0 + kSuperRows);
    for (i64 b = 0; b < supers; b++) {
      SuperList list;
      for (i64 r = r0; r < r1; r++) list.add(&acts.group(r, b * 8), r);
      for (i64 r = r0; r < r1; r++) {
        if (rests.group(r, b * 8).scale != 0) list.add(&rests.group(r, b * 8), r);
      }
      constexpr i64 kMost = kSuperBlocks * kMatrixRows;
      for (i64 i = 0; i < list.count; i += kMost) {
        super_pass<W>(w, supers, b, panels, list, i, least(list.count - i, kMost), b ? 0 : r1 - r0, out, ld, scratch);
      }
    }
  }
  MatrixShapes::release();
}

}  // namespace
OCTAVO_END
#endif
