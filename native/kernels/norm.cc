// Row op "row.rms_norm": x * (1 / sqrt(mean of squares + eps)) * weight, with a real root and division.
//
// Order: lane i of 16 sums the squares of k = i, i + 16, ... with one fma chain; then the fixed tree of reduce_add. It
// depends on K alone, not on threads or rows. A K that is no multiple of 16 ends with lanes of zero.
#include "../simd/simd.h"

OCTAVO_BEGIN
namespace {

// 0 weight ptr f32 [K] 1 eps f
void rms_norm(const i64* args, const Run&, i64, float* x, i64 K) {
  using namespace simd;
  const float* weight = reinterpret_cast<const float*>(args[0]);
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
  const F inverse = set1(1.0f / __builtin_sqrtf(mean + float_arg(args[1])));
  for (i64 k = 0; k < whole; k += 16) store(x + k, mul(mul(load(x + k), inverse), load(weight + k)));
  if (whole < K) {
    const i64 n = K - whole;
    store_n(x + whole, mul(mul(load_n(x + whole, n), inverse), load_n(weight + whole, n)), n);
  }
}

}  // namespace

OCTAVO_ENTRIES(norm, {"row.rms_norm", OCTAVO_FN(rms_norm)})

OCTAVO_END
