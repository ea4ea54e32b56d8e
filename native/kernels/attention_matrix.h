// Both products of a split over bf16 pages on the matrix unit (AMX): scores of up to 32 queries with a pair of pages, sums of
// p * v over two columns of 16. The softmax of attention_tile.h stands
// between them.
//
// An element of a product is (even pairs, odd pairs) summed apart over 32 (or 16) columns of q, or the 16 keys of a page, then
// added to what it was: its own order, so that this is a class of numerics of its own (variant amx); like the others it depends on the
// row of q, the key or the column alone. A page of which all p are 0 adds 0.
//
// Pages are the unit's operands as they lie: K is [pairs of columns][16 keys][2], V [pairs of keys][columns][2].
#pragma once
#include "attention_tile.h"
#include "matrix_unit.h"

#if HAS_MATRIX_TILES
OCTAVO_BEGIN
namespace {

constexpr int kMatrixQueries = 2 * kMatrixRows;

// Sums 0 to 3 are [tile of queries][page or column], 4 and 5 queries (or p), 6 and 7 keys (or values).
static void matrix_shapes(int rows, int more, int pairs) {
  MatrixShapes shapes;
  for (int t = 0; t < 2; t++) {
    shapes.shape(t, rows, 64);
    shapes.shape(2 + t, more, 64);
    shapes.shape(6 + t, pairs, 64);
  }
  shapes.shape(4, rows, pairs * 4);
  shapes.shape(5, more, pairs * 4);
  shapes.load();
}

// TWO: there is a second tile of queries.
template <bool TWO>
static inline void matrix_zero() {
  OCTAVO_TILE_ZERO(0);
  OCTAVO_TILE_ZERO(1);
  if constexpr (TWO) {
    OCTAVO_TILE_ZERO(2);
    OCTAVO_TILE_ZERO(3);
  }
}
template <bool TWO>
static inline void matrix_step(const uint8_t* q, i64 q_stride, const uint8_t* first, const uint8_t* second, i64 stride) {
  OCTAVO_TILE_LOAD(6, first, stride);
  OCTAVO_TILE_LOAD(4, q, q_stride);
  OCTAVO_TILE_BF16(0, 4, 6);
  OCTAVO_TILE_LOAD(7, second, stride);
  OCTAVO_TILE_BF16(1, 4, 7);
  if constexpr (TWO) {
    OCTAVO_TILE_LOAD(5, q + kMatrixRows * q_stride, q_stride);
    OCTAVO_TILE_BF16(2, 5, 6);
    OCTAVO_TILE_BF16(3, 5, 7);
  }
}
template <bool TWO>
static inline void matrix_store(float* to, i64 ld) {
  OCTAVO_TILE_STORE(0, to, ld * 4);
  OCTAVO_TILE_STORE(1, to + 16, ld * 4);
  if constexpr (TWO) {
    OCTAVO_TILE_STORE(2, to + kMatrixRows * ld, ld * 4);
    OCTAVO_TILE_STORE(3, to + kMatrixRows * ld + 16, ld * 4);
  }
}

// Scores of the queries from q0 on. Reading K, the lines of V are asked for.
template <bool TWO>
static void matrix_scores(const Split& a, int q0, int columns) {
  const auto* q = reinterpret_cast<const uint8_t*>(a.q) + q0 * a.head_dim * 2;
  const i64 lines = q0 == 0 ? a.v_offset / 64 * columns / a.head_dim : 0;  // of V, a step
  for (int page = a.first; page < a.last; page += 2) {
    const uint8_t *k = a.page[page], *l = a.page[page + 1];
    matrix_zero<TWO>();
    for (i64 d = 0, line = 0; d < a.head_dim; d += columns) {
      for (const i64 end = line + lines; line < end; line++) {
        prefetch(k + a.v_offset + line * 64);
        prefetch(l + a.v_offset + line * 64);
      }
      matrix_step<TWO>(q + d * 2, a.head_dim * 2, k + d * 32, l + d * 32, 64);
    }
    matrix_store<TWO>(a.s + q0 * kSplit + page * kPage, kSplit);
  }
}

// Sums of p * v of the queries from q0 on; the pages of what comes next are asked for.
template <bool TWO>
static void matrix_values(const Split& a, int q0, float* o) {
  const i64 stride = a.head_dim * 4;  // of a pair of keys
  const auto* p = reinterpret_cast<const uint8_t*>(a.s + q0 * kSplit);
  for (i64 c = 0; c < a.head_dim; c += 32) {
    const i64 second = c + 32 <= a.head_dim ? 16 : 0;  // the last 16 columns of an odd number are done twice
    const bool ahead = q0 + c == 0;
    matrix_zero<TWO>();
    for (int page = a.first_seen; page < a.last_seen; page++) {
      const int n = page - a.first_seen;
      if (ahead && n < a.nexts)
        for (i64 at = 0; at < a.v_offset; at += 64) prefetch(a.next[n] + at);
      const uint8_t* v = a.page[page] + a.v_offset + c * 4;
      matrix_step<TWO>(p + page * kPage * 2, kSplit * 4, v, v + second * 4, stride);
    }
    float* to = o + q0 * a.head_dim + c;
    if (second) {
      matrix_store<TWO>(to, a.head_dim);
    } else {
      OCTAVO_TILE_STORE(0, to, a.head_dim * 4);
      if constexpr (TWO) OCTAVO_TILE_STORE(2, to + kMatrixRows * a.head_dim, a.head_dim * 4);
    }
  }
}

// f(first query, whether there is a second tile) for tiles of queries, two at a time, with the shapes that they need.
template <class Call>
static inline void each_matrix(int queries, int pairs, const Call& call) {
  for (int q0 = 0; q0 < queries; q0 += kMatrixQueries) {
    const int left = queries - q0, rows = left < kMatrixRows ? left : kMatrixRows;
    const int more = left - rows < kMatrixRows ? left - rows : kMatrixRows;
    matrix_shapes(rows, more > 0 ? more : 1, pairs);
    call(q0, more > 0);
  }
}

}  // namespace
OCTAVO_END
#endif
