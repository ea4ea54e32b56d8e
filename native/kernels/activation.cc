// Gated activations: epilogues on a tile [gate | up]; the result takes the place of the gate and the tile's columns halve.
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

}  // namespace

OCTAVO_ENTRIES(activation, {"tile.silu_mul", OCTAVO_FN(gated<Silu>)}, {"tile.gelu_mul", OCTAVO_FN(gated<GeluTanh>)})
OCTAVO_END
