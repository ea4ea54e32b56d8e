// See oracle.h. Slow on purpose: every product and sum is one line that can be read beside the contract.
#include "oracle.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>

namespace octavo {
namespace {

struct Layout {
  const char* id;
  i64 block;    // bytes of 32 columns x 32 k, or of 32 columns x 1 k
  int bits;     // of a code; 0: float elements
  int zero;     // zero point
  int groups;   // scales per 32 k
  bool min;     // has minima
  char scales;  // 'h' half, 'f' float; for float elements also 'b' bf16
};
constexpr Layout kLayouts[] = {
    {"q4_0.p32.k4.1", 576, 4, 8, 1, false, 'h'},    {"q4_1.p32.k4.1", 640, 4, 0, 1, true, 'h'},
    {"q8_0.p32.k4.1", 1088, 8, 128, 1, false, 'h'}, {"i8g32.p32.k4.1", 1280, 8, 16, 1, true, 'f'},
    {"i8g16.p32.k4.1", 1280, 8, 32, 2, false, 'f'}, {"bf16.p32.k1.1", 64, 0, 0, 0, false, 'b'},
    {"f16.p32.k1.1", 64, 0, 0, 0, false, 'h'},      {"f32.p32.k1.1", 128, 0, 0, 0, false, 'f'},
};

template <class T>
T at(const uint8_t* p, i64 index) {
  T value;
  std::memcpy(&value, p + index * static_cast<i64>(sizeof(T)), sizeof(T));
  return value;
}

float half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float size;
  if (exponent == 31) {
    size = fraction ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  } else if (exponent == 0) {
    size = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    size = std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  }
  return bits >> 15 ? -size : size;
}

float element(const uint8_t* p, i64 index, char type) {
  if (type == 'f') return at<float>(p, index);
  if (type == 'h') return half(at<uint16_t>(p, index));
  const uint32_t wide = static_cast<uint32_t>(at<uint16_t>(p, index)) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

int code(const uint8_t* block, const Layout& layout, int column, int k) {
  const int half_column = column / 16, lane = column % 16;
  if (layout.bits == 8) return block[(half_column * 8 + k / 4) * 64 + lane * 4 + k % 4];
  const int byte = block[(half_column * 4 + k % 16 / 4) * 64 + lane * 4 + k % 4];
  return k < 16 ? byte % 16 : byte / 16;
}

float step(float a, float b, float c, bool fused) {
  if (fused) return std::fma(a, b, c);
  const float product = a * b;
  return product + c;
}

float packed_element(const Layout& layout, const uint8_t* panel, i64 K, int column, const uint8_t* row, bool fused) {
  float f = 0;
  for (i64 b = 0; b < K / 32; b++) {
    const uint8_t* block = panel + b * layout.block;
    const uint8_t* scales = block + layout.bits * 128;
    const int size = 32 / layout.groups;
    for (int g = 0; g < layout.groups; g++) {
      int64_t dot = 0;
      for (int k = g * size; k < (g + 1) * size; k++) {
        dot += (code(block, layout, column, k) - layout.zero) * static_cast<int8_t>(row[b * 32 + k]);
      }
      const float scale = element(scales, g * 32 + column, layout.scales) * act_scale(row, K)[b];
      f = step(static_cast<float>(dot), scale, f, fused);
    }
    if (layout.min) f = step(element(scales, 32 + column, layout.scales), act_scaled_sum(row, K)[b], f, fused);
  }
  return f;
}

float float_element(const Layout& layout, const uint8_t* panel, i64 K, int column, const uint8_t* row, bool fused) {
  float f = 0;
  for (i64 k = 0; k < K; k++) {
    f = step(element(panel, k * 32 + column, layout.scales), at<float>(row, k), f, fused);
  }
  return f;
}

}  // namespace

bool oracle_linear(const char* id, const uint8_t* weights, i64 K, i64 panels, const uint8_t* acts, i64 rows, float* out,
                   i64 ld, bool fused) {
  const auto* found = std::find_if(std::begin(kLayouts), std::end(kLayouts),
                                   [&](const Layout& layout) { return std::strcmp(layout.id, id) == 0; });
  if (found == std::end(kLayouts)) return false;
  const bool packed = found->bits != 0;
  const i64 panel = found->block * (packed ? K / 32 : K);
  const i64 stride = packed ? act_row_bytes(K) : K * 4;
  for (i64 r = 0; r < rows; r++) {
    for (i64 c = 0; c < panels * 32; c++) {
      const auto element_of = packed ? packed_element : float_element;
      out[r * ld + c] = element_of(*found, weights + c / 32 * panel, K, static_cast<int>(c % 32), acts + r * stride, fused);
    }
  }
  return true;
}

void oracle_quantize_row(const float* x, i64 K, uint8_t* row) {
  auto* scale = reinterpret_cast<float*>(row + K);
  auto* sum16 = reinterpret_cast<int32_t*>(scale + K / 32 * 2);
  for (i64 g = 0; g < K / 32; g++) {
    float top = 0;
    bool finite = true;
    for (int k = 0; k < 32; k++) {
      const float v = x[g * 32 + k];
      finite = finite && std::isfinite(v);
      top = std::isnan(v) || std::isnan(top) ? std::numeric_limits<float>::quiet_NaN() : std::max(top, std::fabs(v));
    }
    if (top < 1e-36f) top = 0;
    const bool zero = top == 0 || !finite;
    sum16[g * 2] = sum16[g * 2 + 1] = 0;
    for (int k = 0; k < 32; k++) {
      const int q = zero ? 0 : static_cast<int>(std::nearbyint(x[g * 32 + k] * (127.0f / top)));
      row[g * 32 + k] = static_cast<uint8_t>(q);
      sum16[g * 2 + k / 16] += q;
    }
    scale[g] = top / 127.0f;
    scale[K / 32 + g] = scale[g] * static_cast<float>(sum16[g * 2] + sum16[g * 2 + 1]);
  }
}

void oracle_rms_norm(const float* x, const float* weight, i64 K, float eps, bool fused, float* out) {
  float lane[16] = {};
  for (i64 k = 0; k < K; k++) lane[k % 16] = step(x[k], x[k], lane[k % 16], fused);
  for (int width = 8; width; width /= 2) {
    for (int i = 0; i < width; i++) lane[i] += lane[i + width];
  }
  const float inverse = 1.0f / std::sqrt(lane[0] / static_cast<float>(K) + eps);
  for (i64 k = 0; k < K; k++) out[k] = x[k] * inverse * weight[k];
}

}  // namespace octavo
