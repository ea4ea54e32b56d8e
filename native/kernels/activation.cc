// Activations and other functions of one element: epilogues on a tile. Gated ones work on a tile [gate | up]; the result
// takes the place of the gate and the tile's columns halve.
#include "../simd/simd.h"

OCTAVO_BEGIN
namespace {

using namespace simd;

struct Silu {
  static inline F of(F g) { return silu(g); }
};

// g / 2 * (1 + tanh(y)) with y = sqrt(2 / pi) * (g + 0.044715 g^3): the same as g * sigmoid(2 y).
struct GeluTanh {
  static inline F of(F g) {
    const F y = mul(fma(mul(mul(g, g), g), set1(0.044715f), g), set1(-1.5957691216057308f));  // -2 sqrt(2 / pi)
    return div(g, add(set1(1.0f), exp(y)));
  }
};

// x Phi(x), with Phi of the normal distribution by its tail beyond z = |x| / sqrt(2): erfc(z) / 2 = t Q(t) exp(-z^2), where
// t = 1 / (1 + 0.4 z). Q was fitted to erfc(z) exp(z^2) / (2 t) for z in [0, 10.5] by least squares of the relative error
// at Chebyshev points of t; it is off by 7.2e-8 of itself at most. 0.4 of 0.2, 0.22 ... 0.98 keeps the coefficients small,
// and so the rounding; degree 7 is off by 2e-7 or more.
struct GeluErf {
  static inline F of(F x) {
    const F one = set1(1.0f), z = mul(abs(x), set1(0.70710678118654752f));
    const F t = div(one, fma(z, set1(0.4f), one));
    F q = set1(0.0214257951f);
    q = fma(q, t, set1(-0.0740038541f));
    q = fma(q, t, set1(0.0498370936f));
    q = fma(q, t, set1(0.0351407902f));
    q = fma(q, t, set1(0.045882595f));
    q = fma(q, t, set1(0.0941884612f));
    q = fma(q, t, set1(0.101571397f));
    q = fma(q, t, set1(0.113135739f));
    q = fma(q, t, set1(0.112822018f));
    const F tail = mul(mul(q, t), exp(neg(mul(z, z))));
    return mul(x, select(lt(x, zero()), tail, sub(one, tail)));
  }
};

template <class Activation>
static void gated(const i64*, const Run&, Tile& tile) {
  const i64 half = tile.cols / 2;
  for (i64 r = 0; r < tile.rows; r++) {
    float* gate = tile.data + r * tile.ld;
    const float* up = gate + half;
    for (i64 c = 0; c < half; c += 16) {
      const i64 n = half - c;
      store_n(gate + c, mul(Activation::of(load_n(gate + c, n)), load_n(up + c, n)), n);
    }
  }
  tile.cols = half;
}

// 0 alpha f 1 limit f. gate * sigmoid(alpha * gate) * (up + 1), the gate at most and up within the limit. NaN stays NaN.
static void clamped_swiglu(const i64* args, const Run&, Tile& tile) {
  const i64 half = tile.cols / 2;
  const F slope = set1(-float_arg(args[0])), high = set1(float_arg(args[1])), low = neg(high), one = set1(1.0f);
  for (i64 r = 0; r < tile.rows; r++) {
    float* gate = tile.data + r * tile.ld;
    const float* up = gate + half;
    for (i64 c = 0; c < half; c += 16) {
      const i64 n = half - c;
      const F g = min(high, load_n(gate + c, n)), u = max(low, min(high, load_n(up + c, n)));
      const F swish = div(g, add(one, exp(mul(g, slope))));
      store_n(gate + c, mul(swish, add(u, one)), n);
    }
  }
  tile.cols = half;
}

template <class Fn>
static inline void each_element(Tile& tile, const Fn& fn) {
  for (i64 r = 0; r < tile.rows; r++) {
    float* x = tile.data + r * tile.ld;
    for (i64 c = 0; c < tile.cols; c += 16) store_n(x + c, fn(load_n(x + c, tile.cols - c)), tile.cols - c);
  }
}

static void gelu(const i64*, const Run&, Tile& tile) {
  each_element(tile, [](F x) { return GeluTanh::of(x); });
}

static void gelu_erf(const i64*, const Run&, Tile& tile) {
  each_element(tile, [](F x) { return GeluErf::of(x); });
}

// 0 factor f
static void scale(const i64* args, const Run&, Tile& tile) {
  const F factor = set1(float_arg(args[0]));
  each_element(tile, [=](F x) { return mul(x, factor); });
}

// 0 cap f. cap * tanh(x / cap), with tanh|y| = (1 - e) / (1 + e) and e = exp(-2 |y|): off by roundings of 1, not of tanh,
// which is what a logit needs. NaN stays NaN.
static void softcap(const i64* args, const Run&, Tile& tile) {
  const float cap = float_arg(args[0]);
  const F one = set1(1.0f), inward = set1(-2.0f / cap), outward = set1(cap);
  each_element(tile, [=](F x) {
    const F e = exp(mul(abs(x), inward));
    const F y = mul(outward, div(sub(one, e), add(one, e)));
    return select(lt(x, zero()), neg(y), y);
  });
}

// 0 gate ptr f32 1 ld: one number of each row
static void sigmoid_mul(const i64* args, const Run&, Tile& tile) {
  const float* gate = reinterpret_cast<const float*>(args[0]) + tile.row0 * args[1];
  const F one = set1(1.0f);
  for (i64 r = 0; r < tile.rows; r++) {
    float* x = tile.data + r * tile.ld;
    const F weight = div(one, add(one, exp(set1(-gate[r * args[1]]))));
    for (i64 c = 0; c < tile.cols; c += 16) store_n(x + c, mul(load_n(x + c, tile.cols - c), weight), tile.cols - c);
  }
}

}  // namespace

OCTAVO_ENTRIES(activation, {"tile.silu_mul", OCTAVO_FN(gated<Silu>)}, {"tile.gelu_mul", OCTAVO_FN(gated<GeluTanh>)},
               {"tile.clamped_swiglu", OCTAVO_FN(clamped_swiglu)}, {"tile.sigmoid_mul", OCTAVO_FN(sigmoid_mul)},
               {"tile.gelu", OCTAVO_FN(gelu)}, {"tile.gelu_erf", OCTAVO_FN(gelu_erf)},
               {"tile.scale", OCTAVO_FN(scale)}, {"tile.softcap", OCTAVO_FN(softcap)})
OCTAVO_END
