// Row ops "rms_norm" and "layer_norm", with a real root and division. row.*: one row of a prologue. tile.*: every `size`
// adjacent columns of a tile for themselves: the heads of q or k ("tile.head_norm"), or whole rows of a "rows" node.
//
// Order: lane i of 16 sums k = i, i + 16, ... with one chain; then the fixed tree of reduce_add. It depends on the size
// alone, not on threads, rows or the place of a head. A size that is no multiple of 16 ends with lanes of zero.
#include "../simd/simd.h"

OCTAVO_BEGIN
namespace {

using namespace simd;

// x * (1 / sqrt(mean of squares + eps)) * weight
void rms(float* x, i64 K, const float* weight, float eps) {
  const i64 whole = K / 16 * 16;
  F squares = zero();
  for (i64 k = 0; k < whole; k += 16) {
    const F v = load(x + k);
    squares = fma(v, v, squares);
  }
  if (whole < K) {
    const F v = load_n(x + whole, K - whole);
    squares = fma(v, v, squares);
  }
  const float mean = reduce_add(squares) / static_cast<float>(K);
  const F inverse = set1(1.0f / __builtin_sqrtf(mean + eps));
  for (i64 k = 0; k < whole; k += 16) store(x + k, mul(mul(load(x + k), inverse), load(weight + k)));
  if (whole < K) {
    const i64 n = K - whole;
    store_n(x + whole, mul(mul(load_n(x + whole, n), inverse), load_n(weight + whole, n)), n);
  }
}

// (x - mean) * (1 / sqrt(mean of (x - mean)^2 + eps)) * weight + bias: in two passes, since one would cancel.
void layer(float* x, i64 K, const float* weight, const float* bias, float eps) {
  const float count = static_cast<float>(K);
  F sum = zero(), squares = zero();
  for (i64 k = 0; k < K; k += 16) sum = add(sum, load_n(x + k, K - k));
  const F mean = set1(reduce_add(sum) / count);
  for (i64 k = 0; k < K; k += 16) {
    const F v = select(mask_n(K - k), sub(load_n(x + k, K - k), mean), zero());
    squares = fma(v, v, squares);
    store_n(x + k, v, K - k);
  }
  const F inverse = set1(1.0f / __builtin_sqrtf(reduce_add(squares) / count + eps));
  for (i64 k = 0; k < K; k += 16) {
    const i64 n = K - k;
    store_n(x + k, add(mul(mul(load_n(x + k, n), inverse), load_n(weight + k, n)), load_n(bias + k, n)), n);
  }
}

inline const float* floats(i64 address) { return reinterpret_cast<const float*>(address); }

template <class Norm>
inline void each_piece(Tile& tile, i64 size, const Norm& norm) {
  for (i64 r = 0; r < tile.rows; r++)
    for (i64 c = 0; c < tile.cols; c += size) norm(tile.data + r * tile.ld + c);
}

// 0 weight ptr f32 [K] 1 eps f
void rms_norm(const i64* args, const Run&, i64, float* x, i64 K) { rms(x, K, floats(args[0]), float_arg(args[1])); }

// 0 weight ptr f32 [K] 1 bias ptr f32 [K] 2 eps f
void layer_norm(const i64* args, const Run&, i64, float* x, i64 K) {
  layer(x, K, floats(args[0]), floats(args[1]), float_arg(args[2]));
}

// 0 weight ptr f32 [size] 1 eps f 2 size
void tile_rms_norm(const i64* args, const Run&, Tile& tile) {
  each_piece(tile, args[2], [&](float* x) { rms(x, args[2], floats(args[0]), float_arg(args[1])); });
}

// 0 weight ptr f32 [size] 1 bias ptr f32 [size] 2 eps f 3 size
void tile_layer_norm(const i64* args, const Run&, Tile& tile) {
  each_piece(tile, args[3], [&](float* x) { layer(x, args[3], floats(args[0]), floats(args[1]), float_arg(args[2])); });
}

}  // namespace

OCTAVO_ENTRIES(norm, {"row.rms_norm", OCTAVO_FN(rms_norm)}, {"row.layer_norm", OCTAVO_FN(layer_norm)},
               {"tile.rms_norm", OCTAVO_FN(tile_rms_norm)}, {"tile.head_norm", OCTAVO_FN(tile_rms_norm)},
               {"tile.layer_norm", OCTAVO_FN(tile_layer_norm)})

OCTAVO_END
