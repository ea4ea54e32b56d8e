// Tile ops that move or add: "tile.bias", "tile.store", "tile.add". A tile's last columns may be no multiple of 16 (a
// ragged last unit); what stands beyond `cols` is not written.
#include "../simd/simd.h"

OCTAVO_BEGIN
namespace {

// Calls body(row, column, n) for every run of n <= 16 columns of every row.
template <class Fn>
inline void each_piece(const Tile& tile, const Fn& body) {
  for (i64 r = 0; r < tile.rows; r++) {
    for (i64 c = 0; c < tile.cols; c += 16) body(r, c, tile.cols - c < 16 ? tile.cols - c : 16);
  }
}

// 0 ptr f32 [N]
void bias(const i64* args, const Run&, Tile& tile) {
  const float* from = reinterpret_cast<const float*>(args[0]) + tile.col0;
  each_piece(tile, [&](i64 r, i64 c, i64 n) {
    float* at = tile.data + r * tile.ld + c;
    simd::store_n(at, simd::add(simd::load_n(at, n), simd::load_n(from + c, n)), n);
  });
}

// 0 ptr f32 1 ld
void store(const i64* args, const Run&, Tile& tile) {
  float* to = reinterpret_cast<float*>(args[0]) + tile.row0 * args[1] + tile.col0;
  each_piece(tile, [&](i64 r, i64 c, i64 n) {
    simd::store_n(to + r * args[1] + c, simd::load_n(tile.data + r * tile.ld + c, n), n);
  });
}

// 0 residual ptr f32 1 ld 2 out ptr f32 3 ld (may be the same)
void add(const i64* args, const Run&, Tile& tile) {
  const float* from = reinterpret_cast<const float*>(args[0]) + tile.row0 * args[1] + tile.col0;
  float* to = reinterpret_cast<float*>(args[2]) + tile.row0 * args[3] + tile.col0;
  each_piece(tile, [&](i64 r, i64 c, i64 n) {
    const simd::F sum = simd::add(simd::load_n(from + r * args[1] + c, n), simd::load_n(tile.data + r * tile.ld + c, n));
    simd::store_n(to + r * args[3] + c, sum, n);
  });
}

}  // namespace

OCTAVO_ENTRIES(tile_ops, {"tile.bias", OCTAVO_FN(bias)}, {"tile.store", OCTAVO_FN(store)}, {"tile.add", OCTAVO_FN(add)})

OCTAVO_END
