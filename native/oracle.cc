// See oracle.h. Slow on purpose: every product and sum is one line that can be read beside the contract.
#include "oracle.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

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
int code_q5_k(const uint8_t* block, int column, int k) { return code_q5_0(block + k / 32 * 640, column, k % 32); }
int pair(const uint8_t* plane, int column, int k) {
  return plane[k / 16 * 128 + column * 4 + k % 4] / (1 << 2 * (k % 16 / 4)) % 4;
}
int code_q2_k(const uint8_t* block, int column, int k) { return pair(block + k / 32 * 320, column, k % 32); }
int code_q3_k(const uint8_t* block, int column, int k) {
  const uint8_t* step = block + k / 32 * 384;
  const int high = step[256 + column * 4 + k % 4] / (1 << k % 32 / 4) % 2;
  return pair(step, column, k % 32) + 4 * high;
}
int code_tq2_0(const uint8_t* block, int column, int k) { return pair(block + k / 32 * 256, column, k % 32); }
int code_q6_k(const uint8_t* block, int column, int k) {
  const uint8_t* step = block + k / 32 * 832;
  return nibble(step, column, k % 32) + 16 * pair(step + 512, column, k % 32);
}
template <int AT>
float half_at(const uint8_t* block, int column, int) {
  return half(at<uint16_t>(block + AT, column));
}
// Six bits of step s from `from` on: which 0: the first number (scales), 1: the second.
int six_bits(const uint8_t* from, int column, int s, int which) {
  const int low = which ? from[s * 32 + column] / 16 : from[s * 32 + column] % 16;
  return low + 16 * (from[256 + s % 4 * 32 + column] >> (s / 4 * 4 + which * 2) & 3);
}
// Whole numbers that scale a group of a super-block, or are its minimum.
template <int SIX, int WHICH>
int six_at(const uint8_t* block, int column, int k) {
  return six_bits(block + SIX, column, k / 32, WHICH);
}
int scale_q3_k(const uint8_t* block, int column, int k) { return six_bits(block + 3136, column, k / 32, k % 32 / 16) - 32; }
int scale_q2_k(const uint8_t* block, int column, int k) {
  return block[k / 32 * 320 + 256 + k % 32 / 16 * 32 + column] % 16;
}
int minimum_q2_k(const uint8_t* block, int column, int k) {
  return block[k / 32 * 320 + 256 + k % 32 / 16 * 32 + column] / 16;
}
int scale_q6_k(const uint8_t* block, int column, int k) {
  return static_cast<int8_t>(block[k / 32 * 832 + 768 + k % 32 / 16 * 32 + column]);
}

template <int (*CODE)(const uint8_t* block, int column, int k), int ZERO, int GROUP, int SPAN>
int64_t dot(const uint8_t* block, int column, int first, const int8_t* x) {
  const int from = SPAN == GROUP ? 0 : first;
  int64_t sum = 0;
  for (int k = 0; k < GROUP; k++) sum += (CODE(block, column, from + k) - ZERO) * x[k];
  return sum;
}

// Numbers of formats with a table, of its index. kEighths and the like: an i-quant's magnitudes, then the same below zero.
constexpr int kNl[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int kE2m1[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
constexpr int kEighths[] = {8, 25, 43, 0, 0, 0, 0, 0, -8, -25, -43, 0, 0, 0, 0, 0};
constexpr int kQuarters[] = {4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62};
constexpr int kOdd[] = {1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15};
constexpr int kShifted[] = {-7, 1, 9, 0, 0, 0, 0, 0, -9, -1, 7, 0, 0, 0, 0, 0};
template <const int (&TABLE)[16]>
int looked_up(const uint8_t* block, int column, int k) {
  return TABLE[nibble(block + k / 32 * 512, column, k % 32)];
}
float scale_mxfp4(const uint8_t* block, int column, int) { return std::ldexp(1.0f, block[512 + column] - 128); }
int scale_iq4_xs(const uint8_t* block, int column, int k) {
  const int s = k / 32, low = block[4160 + s / 2 * 32 + column] >> s % 2 * 4 & 15;
  const int high = block[4288 + s / 4 * 32 + column] >> s % 4 * 2 & 3;
  return low + 16 * high - 32;
}
// The odd multiplier of a group of GROUP, in units of 1 / UNIT.
template <int GROUP, int UNIT>
float scale_grid(const uint8_t* block, int column, int k) {
  const float multiplier = static_cast<float>(block[4160 + k / GROUP * 32 + column]) / UNIT;
  return half(at<uint16_t>(block + 4096, column)) * multiplier;
}

using Dot = int64_t (*)(const uint8_t* block, int column, int first, const int8_t* x);
using Scale = float (*)(const uint8_t* block, int column, int k);
using Whole = int (*)(const uint8_t* block, int column, int k);
struct Layout {
  const char* id;
  i64 block, span;  // bytes of 32 columns x span k
  int group;        // k that share a scale
  Dot dot;          // of the codes, less the zero point, of the group that begins at `first`, with its activations
  Scale scale, minimum;  // of super-blocks those of all 256 k
  Whole scales = nullptr, minima = nullptr;
};
constexpr Layout kLayouts[] = {
    {"q4_0.p32.k4.1", 576, 32, 32, dot<nibble, 8, 32, 32>, half_at<512>, nullptr},
    {"q4_1.p32.k4.1", 640, 32, 32, dot<nibble, 0, 32, 32>, half_at<512>, half_at<576>},
    {"q8_0.p32.k4.1", 1088, 32, 32, dot<byte, 128, 32, 32>, half_at<1024>, nullptr},
    {"int8.p32.k4.1", 1152, 32, 32, dot<byte, 128, 32, 32>, half_at<1024>, half_at<1088>},
    {"q5_0.p32.k4.1", 704, 32, 32, dot<code_q5_0, 16, 32, 32>, half_at<640>, nullptr},
    {"q5_1.p32.k4.1", 768, 32, 32, dot<code_q5_0, 0, 32, 32>, half_at<640>, half_at<704>},
    {"q2_k.p32.k4.1", 2688, 256, 16, dot<code_q2_k, 0, 16, 256>, half_at<2560>, half_at<2624>, scale_q2_k, minimum_q2_k},
    {"q3_k.p32.k4.1", 3520, 256, 16, dot<code_q3_k, 4, 16, 256>, half_at<3072>, nullptr, scale_q3_k},
    {"q4_k.p32.k4.1", 4608, 256, 32, dot<code_q4_k, 0, 32, 256>, half_at<4096>, half_at<4160>, six_at<4224, 0>, six_at<4224, 1>},
    {"q5_k.p32.k4.1", 5632, 256, 32, dot<code_q5_k, 0, 32, 256>, half_at<5120>, half_at<5184>, six_at<5248, 0>, six_at<5248, 1>},
    {"q6_k.p32.k4.1", 6720, 256, 16, dot<code_q6_k, 32, 16, 256>, half_at<6656>, nullptr, scale_q6_k},
    {"iq4_nl.p32.k4.1", 576, 32, 32, dot<looked_up<kNl>, 0, 32, 32>, half_at<512>, nullptr},
    {"iq4_xs.p32.k4.1", 4352, 256, 32, dot<looked_up<kNl>, 0, 32, 256>, half_at<4096>, nullptr, scale_iq4_xs},
    {"mxfp4.p32.k4.1", 544, 32, 32, dot<looked_up<kE2m1>, 0, 32, 32>, scale_mxfp4, nullptr},
    {"iq3_s.p32.k4.1", 4416, 256, 32, dot<looked_up<kOdd>, 0, 32, 256>, scale_grid<32, 1>, nullptr},
    {"iq3_xxs.p32.k4.1", 4416, 256, 32, dot<looked_up<kQuarters>, 0, 32, 256>, scale_grid<32, 4>, nullptr},
    {"iq2_s.p32.k4.1", 4672, 256, 16, dot<looked_up<kEighths>, 0, 16, 256>, scale_grid<16, 8>, nullptr},
    {"iq2_xs.p32.k4.1", 4672, 256, 16, dot<looked_up<kEighths>, 0, 16, 256>, scale_grid<16, 8>, nullptr},
    {"iq2_xxs.p32.k4.1", 4416, 256, 32, dot<looked_up<kEighths>, 0, 32, 256>, scale_grid<32, 8>, nullptr},
    {"iq1_m.p32.k4.1", 4672, 256, 16, dot<looked_up<kShifted>, 0, 16, 256>, scale_grid<16, 8>, nullptr},
    {"iq1_s.p32.k4.1", 4416, 256, 32, dot<looked_up<kShifted>, 0, 32, 256>, scale_grid<32, 8>, nullptr},
    {"tq2_0.p32.k4.1", 2112, 256, 32, dot<code_tq2_0, 1, 32, 256>, half_at<2048>, nullptr},
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

float super_element(const Layout& layout, const uint8_t* panel, i64 K, int column, const uint8_t* row, bool fused) {
  float f = 0;
  for (i64 k0 = 0; k0 < K; k0 += 256) {
    const uint8_t* block = panel + k0 / 256 * layout.block;
    for (const ActGroup* groups : {act_groups(row), act_groups(row + rests_at(K))}) {
      const float scale = groups[k0 / 32].scale;
      if (groups != act_groups(row) && scale == 0) continue;
      int64_t sum = 0, of_minima = 0;
      for (int k = 0; k < 256; k += layout.group) {
        const ActGroup& acts = groups[(k0 + k) / 32];
        sum += layout.scales(block, column, k) * layout.dot(block, column, k, acts.x + k % 32);
        if (layout.minima) of_minima += layout.minima(block, column, k) * (layout.group == 32 ? acts.sum : acts.sum16[k % 32 / 16]);
      }
      float t = layout.scale(block, column, 0) * static_cast<float>(sum);
      if (layout.minima) t = step(layout.minimum(block, column, 0), static_cast<float>(of_minima), t, fused);
      f = step(t, scale, f, fused);
    }
  }
  return f;
}

float packed_element(const Layout& layout, const uint8_t* panel, i64 K, int column, const uint8_t* row, bool fused) {
  float f = 0;
  for (i64 k0 = 0; k0 < K; k0 += layout.group) {
    const uint8_t* block = panel + k0 / layout.span * layout.block;
    const int first = static_cast<int>(k0 % layout.span);
    const ActGroup& acts = act_groups(row)[k0 / 32];
    const int64_t dot = layout.dot(block, column, first, acts.x + k0 % 32);
    float d = layout.scale(block, column, first), m = layout.minimum ? layout.minimum(block, column, first) : 0;
    if (layout.scales) d *= static_cast<float>(layout.scales(block, column, first));
    if (layout.minima) m *= static_cast<float>(layout.minima(block, column, first));
    const float scale = d * acts.scale;
    f = step(static_cast<float>(dot), scale, f, fused);
    if (!layout.minimum) continue;
    const float of16 = acts.scale * static_cast<float>(acts.sum16[k0 % 32 / 16]);
    f = step(m, layout.group == 32 ? acts.scaled_sum : of16, f, fused);
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
  const std::string name(id), summed = ".s256";
  const bool sums = name.size() > summed.size() && name.substr(name.size() - summed.size()) == summed;
  for (const Layout& layout : kLayouts) {
    if (name != layout.id + (sums ? summed : "")) continue;
    const auto element_of = sums ? super_element : packed_element;
    fill(weights, K / layout.span * layout.block, panels, acts, act_row_bytes(K, sums ? 256 : 32), rows, out, ld,
         [&](const uint8_t* panel, int c, const uint8_t* row) { return element_of(layout, panel, K, c, row, fused); });
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

namespace {
// One group of codes: round(x * inverse), or the rest of that in 128ths.
ActGroup group_of(const float* x, float inverse, float scale, bool rests) {
  ActGroup to = {};
  for (int k = 0; k < 32; k++) {
    const float value = x[k] * inverse, whole = std::nearbyint(value);
    const int q = static_cast<int>(rests ? std::nearbyint((value - whole) * 128) : whole);
    to.x[k] = static_cast<int8_t>(q);
    to.sum16[k / 16] = static_cast<int16_t>(to.sum16[k / 16] + q);
    to.sum += q;
  }
  to.scale = scale;
  to.scaled_sum = scale * static_cast<float>(to.sum);
  return to;
}
float top_of(const float* x, i64 n) {
  float top = 0;
  for (i64 k = 0; k < n; k++) {
    top = std::isnan(x[k]) || std::isnan(top) ? std::numeric_limits<float>::quiet_NaN() : std::max(top, std::fabs(x[k]));
  }
  return top;
}
}  // namespace

void oracle_quantize_row(const float* x, i64 K, i64 span, uint8_t* row) {
  const std::vector<float> zeros(32);
  for (i64 k = 0; k < K; k += span) {
    float top = top_of(x + k, span), sum = 0;
    for (i64 g = k; g < k + span; g += 32) sum = sum + top_of(x + g, 32) * top_of(x + g, 32);
    const bool wide = span == 256 && std::isfinite(top) && top >= 1e-15f && 2 * (top * top) > sum;
    if (top < 1e-36f) top = 0;
    const bool zero = top == 0 || !std::isfinite(top);
    for (i64 g = k; g < k + span; g += 32) {
      const float* from = zero ? zeros.data() : x + g;
      const float inverse = zero ? 0 : 127.0f / top;
      const ActGroup codes = group_of(from, inverse, top / 127.0f, false);
      std::memcpy(row + g / 32 * static_cast<i64>(sizeof codes), &codes, sizeof codes);
      if (span == 32) continue;
      const ActGroup rests = wide ? group_of(from, inverse, top / 127.0f * 0.0078125f, true) : ActGroup{};
      std::memcpy(row + rests_at(K) + g / 32 * static_cast<i64>(sizeof rests), &rests, sizeof rests);
    }
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
