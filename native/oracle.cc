// See oracle.h. Slow on purpose: every product and sum is one line that can be read beside the contract.
#include "oracle.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace octavo {
namespace {

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

// Weight (column, k) of a block of 32 columns x 32 k of nibbles or of bytes.
int nibble(const uint8_t* block, int column, int k) {
  const int byte = block[(column / 16 * 4 + k % 16 / 4) * 64 + column % 16 * 4 + k % 4];
  return k < 16 ? byte % 16 : byte / 16;
}
int byte(const uint8_t* block, int column, int k) {
  return block[(column / 16 * 8 + k / 4) * 64 + column % 16 * 4 + k % 4];
}

// Codes, scales and minima of weight (column, k) of a block, k in [0, span).
int code_q5_0(const uint8_t* block, int column, int k) {
  const int j = k / 4, fifth = block[512 + column * 4 + k % 4] / (1 << j) % 2;
  return nibble(block, column, k) + 16 * fifth;
}
int code_q4_k(const uint8_t* block, int column, int k) { return nibble(block + k / 32 * 512, column, k % 32); }
int code_q6_k(const uint8_t* block, int column, int k) {
  const uint8_t* step = block + k / 32 * 832;
  const int j = k % 16 / 4, pair = step[512 + k % 32 / 16 * 128 + column * 4 + k % 4] / (1 << 2 * j) % 4;
  return nibble(step, column, k % 32) + 16 * pair;
}
template <int AT>
float half_at(const uint8_t* block, int column, int) {
  return half(at<uint16_t>(block + AT, column));
}
int pair_q4_k(const uint8_t* block, int column, int s, int which) {  // which 0: scale, 1: minimum; bits 4 and 5 of it
  return block[4480 + s % 4 * 32 + column] >> (s / 4 * 4 + which * 2) & 3;
}
float scale_q4_k(const uint8_t* block, int column, int k) {
  const int s = k / 32, six = block[4224 + s * 32 + column] % 16 + 16 * pair_q4_k(block, column, s, 0);
  return half(at<uint16_t>(block + 4096, column)) * static_cast<float>(six);
}
float minimum_q4_k(const uint8_t* block, int column, int k) {
  const int s = k / 32, six = block[4224 + s * 32 + column] / 16 + 16 * pair_q4_k(block, column, s, 1);
  return half(at<uint16_t>(block + 4160, column)) * static_cast<float>(six);
}
float scale_q6_k(const uint8_t* block, int column, int k) {
  const auto eight = static_cast<int8_t>(block[k / 32 * 832 + 768 + k % 32 / 16 * 32 + column]);
  return half(at<uint16_t>(block + 6656, column)) * static_cast<float>(eight);
}

template <int (*CODE)(const uint8_t* block, int column, int k), int ZERO, int GROUP, int SPAN>
int64_t dot(const uint8_t* block, int column, int first, const int8_t* x) {
  const int from = SPAN == GROUP ? 0 : first;
  int64_t sum = 0;
  for (int k = 0; k < GROUP; k++) sum += (CODE(block, column, from + k) - ZERO) * x[k];
  return sum;
}

using Dot = int64_t (*)(const uint8_t* block, int column, int first, const int8_t* x);
using Scale = float (*)(const uint8_t* block, int column, int k);
struct Layout {
  const char* id;
  i64 block, span;  // bytes of 32 columns x span k
  int group;        // k that share a scale
  Dot dot;          // of the codes, less the zero point, of the group that begins at `first`, with its activations
  Scale scale, minimum;
};
constexpr Layout kLayouts[] = {
    {"q4_0.p32.k4.1", 576, 32, 32, dot<nibble, 8, 32, 32>, half_at<512>, nullptr},
    {"q4_1.p32.k4.1", 640, 32, 32, dot<nibble, 0, 32, 32>, half_at<512>, half_at<576>},
    {"q8_0.p32.k4.1", 1088, 32, 32, dot<byte, 128, 32, 32>, half_at<1024>, nullptr},
    {"q5_0.p32.k4.1", 704, 32, 32, dot<code_q5_0, 16, 32, 32>, half_at<640>, nullptr},
    {"q4_k.p32.k4.1", 4608, 256, 32, dot<code_q4_k, 0, 32, 256>, scale_q4_k, minimum_q4_k},
    {"q6_k.p32.k4.1", 6720, 256, 16, dot<code_q6_k, 32, 16, 256>, scale_q6_k, nullptr},
};
struct Floats {
  const char* id;
  char type;
  i64 bytes;
};
constexpr Floats kFloats[] = {{"bf16.p32.k1.1", 'b', 2}, {"f16.p32.k1.1", 'h', 2}, {"f32.p32.k1.1", 'f', 4}};

float step(float a, float b, float c, bool fused) {
  if (fused) return std::fma(a, b, c);
  const float product = a * b;
  return product + c;
}

float packed_element(const Layout& layout, const uint8_t* panel, i64 K, int column, const uint8_t* row, bool fused) {
  float f = 0;
  for (i64 k0 = 0; k0 < K; k0 += layout.group) {
    const uint8_t* block = panel + k0 / layout.span * layout.block;
    const int first = static_cast<int>(k0 % layout.span);
    const ActGroup& acts = act_groups(row)[k0 / 32];
    const int64_t dot = layout.dot(block, column, first, acts.x + k0 % 32);
    const float scale = layout.scale(block, column, first) * acts.scale;
    f = step(static_cast<float>(dot), scale, f, fused);
    if (layout.minimum) f = step(layout.minimum(block, column, first), acts.scaled_sum, f, fused);
  }
  return f;
}

float float_element(const Floats& layout, const uint8_t* panel, i64 K, int column, const uint8_t* row, bool fused) {
  float f = 0;
  for (i64 k = 0; k < K; k++) f = step(element(panel, k * 32 + column, layout.type), at<float>(row, k), f, fused);
  return f;
}

// out of every row and column by element_of(panel, column, row of activations).
template <class Fn>
void fill(const uint8_t* weights, i64 panel, i64 panels, const uint8_t* acts, i64 stride, i64 rows, float* out, i64 ld,
          const Fn& element_of) {
  for (i64 r = 0; r < rows; r++) {
    for (i64 c = 0; c < panels * 32; c++) {
      out[r * ld + c] = element_of(weights + c / 32 * panel, static_cast<int>(c % 32), acts + r * stride);
    }
  }
}

}  // namespace

bool oracle_linear(const char* id, const uint8_t* weights, i64 K, i64 panels, const uint8_t* acts, i64 rows, float* out,
                   i64 ld, bool fused) {
  for (const Layout& layout : kLayouts) {
    if (std::strcmp(layout.id, id) != 0) continue;
    fill(weights, K / layout.span * layout.block, panels, acts, act_row_bytes(K), rows, out, ld,
         [&](const uint8_t* panel, int c, const uint8_t* row) { return packed_element(layout, panel, K, c, row, fused); });
    return true;
  }
  for (const Floats& layout : kFloats) {
    if (std::strcmp(layout.id, id) != 0) continue;
    fill(weights, K * 32 * layout.bytes, panels, acts, K * 4, rows, out, ld,
         [&](const uint8_t* panel, int c, const uint8_t* row) { return float_element(layout, panel, K, c, row, fused); });
    return true;
  }
  return false;
}

void oracle_quantize_row(const float* x, i64 K, uint8_t* row) {
  for (i64 g = 0; g < K / 32; g++, x += 32) {
    float top = 0;
    bool finite = true;
    for (int k = 0; k < 32; k++) {
      finite = finite && std::isfinite(x[k]);
      top = std::isnan(x[k]) || std::isnan(top) ? std::numeric_limits<float>::quiet_NaN() : std::max(top, std::fabs(x[k]));
    }
    if (top < 1e-36f) top = 0;
    const bool zero = top == 0 || !finite;
    ActGroup to = {};
    for (int k = 0; k < 32; k++) {
      const int q = zero ? 0 : static_cast<int>(std::nearbyint(x[k] * (127.0f / top)));
      to.x[k] = static_cast<int8_t>(q);
      to.sum16[k / 16] += q;
    }
    to.scale = top / 127.0f;
    to.scaled_sum = to.scale * static_cast<float>(to.sum16[0] + to.sum16[1]);
    std::memcpy(row + g * static_cast<i64>(sizeof to), &to, sizeof to);
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
