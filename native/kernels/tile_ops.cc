// Tile ops that move or add: "tile.bias", "tile.store", "tile.add". A tile's last columns may be no multiple of 16 (a
// ragged last unit); what stands beyond `cols` is not written.
#include "../simd/simd.h"

OCTAVO_BEGIN
namespace {

// Lanes of a piece of 16 columns or, at the end of a row, fewer.
struct Whole {
  static inline simd::F load(const float* p) { return simd::load(p); }
  static inline void store(float* p, simd::F v) { simd::store(p, v); }
};
struct Part {
  i64 n;
  inline simd::F load(const float* p) const { return simd::load_n(p, n); }
  inline void store(float* p, simd::F v) const { simd::store_n(p, v, n); }
};

// Calls body(row, column, piece) for every 16 columns of every row.
template <class Fn>
inline void each_piece(const Tile& tile, const Fn& body) {
  for (i64 r = 0; r < tile.rows; r++) {
    i64 c = 0;
    for (; c + 16 <= tile.cols; c += 16) body(r, c, Whole{});
    if (c < tile.cols) body(r, c, Part{tile.cols - c});
  }
}

// 0 ptr f32 [N]
void bias(const i64* args, const Run&, Tile& tile) {
  const float* from = reinterpret_cast<const float*>(args[0]) + tile.col0;
  each_piece(tile, [&](i64 r, i64 c, auto piece) {
    float* at = tile.data + r * tile.ld + c;
    piece.store(at, simd::add(piece.load(at), piece.load(from + c)));
  });
}

// 0 ptr f32 1 ld
void store(const i64* args, const Run&, Tile& tile) {
  float* to = reinterpret_cast<float*>(args[0]) + tile.row0 * args[1] + tile.col0;
  each_piece(tile, [&](i64 r, i64 c, auto piece) {
    piece.store(to + r * args[1] + c, piece.load(tile.data + r * tile.ld + c));
  });
}

// 0 residual ptr f32 1 ld 2 out ptr f32 3 ld (may be the same). The tile holds the sum, too, for the ops that follow.
void add(const i64* args, const Run&, Tile& tile) {
  const float* from = reinterpret_cast<const float*>(args[0]) + tile.row0 * args[1] + tile.col0;
  float* to = reinterpret_cast<float*>(args[2]) + tile.row0 * args[3] + tile.col0;
  each_piece(tile, [&](i64 r, i64 c, auto piece) {
    float* at = tile.data + r * tile.ld + c;
    const simd::F sum = simd::add(piece.load(from + r * args[1] + c), piece.load(at));
    piece.store(to + r * args[3] + c, sum);
    piece.store(at, sum);
  });
}

}  // namespace

OCTAVO_ENTRIES(tile_ops, {"tile.bias", OCTAVO_FN(bias)}, {"tile.store", OCTAVO_FN(store)}, {"tile.add", OCTAVO_FN(add)})

OCTAVO_END
