// The attention node, its cache writes, rope and gated activations: against a float64 reference within a bound computed from
// the data; bit for bit against itself over chunkings, batches, threads and work sharing, and against the other variants of
// its numerics class. Takes the name of a variant and tests that one, or "classes" and compares the variants; nothing: all.
#include "attention_world.h"

using namespace world;

namespace {

int failures = 0;

void check(bool ok, const char* what, const Shape& s, const std::string& detail) {
  if (ok) return;
  failures++;
  if (failures < 20)
    std::printf("FAILED %s %s: heads %d, kv heads %d, head dim %d, dtype %d: %s\n", variant->name, what, s.heads, s.kv_heads,
                s.head_dim, s.dtype, detail.c_str());
}

constexpr double kUnit = 0x1p-24, kUnitBf16 = 0x1p-9;  // unit roundoff of float and of bf16

// One output row of one head in float64, and for each column the most that an implementation may be off.
// Score: q rounded (bf16 dot product only), head_dim products and sums, scale (and cap: 8 roundings of a number <= cap).
// int8 pages: q is off by half of a code of 2^14 - 1, each weight times scale by half of 1/32767 of the largest one.
// Weights: 2^(s - m) off by the score twice (its own, the largest), its polynomial (2^-18 or 2^-23) and rounding to bf16;
// keys + merges sums of float on top and below.
struct Expected {
  std::vector<double> value, bound;
};

// Keys or values of one sequence as pages of the dtype keep them: [position][KV head][head dim], and what an int8 code is
// worth, [position][KV head].
struct Kept {
  std::vector<double> value, scale;
  Kept(const std::vector<float>& x, const Shape& s) : value(x.begin(), x.end()), scale(x.size() / s.head_dim) {
    for (size_t head = 0; head < scale.size(); head++) {
      const float* from = &x[head * s.head_dim];
      float top = 0;
      for (int d = 0; d < s.head_dim; d++) top = std::max(top, std::fabs(from[d]));
      scale[head] = top / 127.0f;
      for (int d = 0; d < s.head_dim && s.dtype != kKvFloat; d++) {
        const bool codes = s.dtype == kKvInt8;
        value[head * s.head_dim + d] = codes               ? double(std::nearbyintf(from[d] * (127.0f / top))) * scale[head]
                                       : s.dtype == kKvHalf ? to_half(from[d])
                                                            : to_bf16(from[d]);
      }
    }
  }
};

Expected reference(const World& w, const Kept& keys, const Kept& values, int sequence, int position, int head, bool bf16_dot) {
  const int hd = w.shape.head_dim, kvh = head / w.shape.group();
  const auto [lo, hi] = w.visible(sequence, position);
  const auto row = [&](int p) { return size_t(p) * w.shape.kv_heads + kvh; };
  const float* q = &w.q[sequence][(size_t(position) * w.shape.heads + head) * hd];
  const bool codes = w.shape.dtype == kKvInt8;
  double q_off = 0;
  for (int d = 0; codes && d < hd; d++) q_off = std::max(q_off, std::fabs(double(q[d])) / 16383 / 2);
  std::vector<double> s(std::max(0, hi - lo));
  double off = 0, top = -INFINITY;
  for (int p = lo; p < hi; p++) {
    const double* key = &keys.value[row(p) * hd];
    double sum = 0, size = 0, all = 0;
    for (int d = 0; d < hd; d++) {
      const double x = double(q[d]) * key[d];
      sum += x;
      size += std::fabs(x);
      all += std::fabs(key[d]);
    }
    double score = sum * w.scale, e = size * w.scale * ((hd + 4) * kUnit + (bf16_dot ? kUnitBf16 : 0)) + all * w.scale * q_off;
    if (w.cap > 0) {
      score = w.cap * std::tanh(score / w.cap);
      e += 8 * kUnit * w.cap;
    }
    s[p - lo] = score;
    off = std::max(off, e + 4 * kUnit * std::fabs(score));
    top = std::max(top, score);
  }
  Expected out{std::vector<double>(hd), std::vector<double>(hd)};
  double l = 0;
  for (double x : s) l += std::exp(x - top);
  if (!w.sinks.empty()) l += std::exp(double(w.sinks[head]) - top);
  const double n = double(s.size()), merges = n / kSplit + 2;
  const double weight = std::expm1(2 * off) + (bf16_dot ? 2 * kUnitBf16 + 0x1p-17 : 0) + (2 * n + 8 * merges + 16) * kUnit;
  double most = 0;  // weight times scale of a key
  for (int p = lo; codes && p < hi; p++) most = std::max(most, std::exp(s[p - lo] - top) / l * values.scale[row(p)]);
  for (int p = lo; p < hi; p++) {
    const double part = std::exp(s[p - lo] - top) / l;
    const double* value = &values.value[row(p) * hd];
    for (int d = 0; d < hd; d++) {
      const double x = part * value[d];
      out.value[d] += x;
      out.bound[d] += std::fabs(x) * weight + (codes ? 127 * most * (1 + weight) / 32767 / 2 : 0) + 1e-36;
    }
  }
  return out;
}

std::vector<Part> everything(const World& w) {
  std::vector<Part> parts;
  for (size_t s = 0; s < w.lengths.size(); s++) parts.push_back({int(s), 0, w.lengths[s]});
  return parts;
}

bool uses_bf16_dot(const Shape& s) { return s.dtype == 0 && (std::string(variant->name) == "avx512bf16" || std::string(variant->name) == "amx"); }

void check_values(World& w, const char* what) {
  w.clear();
  w.write(everything(w));
  const auto out = w.attend(everything(w), 2, 0);
  const int hd = w.shape.head_dim;
  size_t row = 0;
  double worst = 0;
  for (size_t s = 0; s < w.lengths.size(); s++) {
    const Kept keys(w.k[s], w.shape), values(w.v[s], w.shape);
    for (int p = 0; p < w.lengths[s]; p++, row++) {
      if (p > 33 && p % 37 && p % 256 > 1 && p != w.lengths[s] - 1) continue;  // all of the start, then a sample
      for (int h = 0; h < w.shape.heads; h++) {
        const Expected e = reference(w, keys, values, int(s), p, h, uses_bf16_dot(w.shape));
        for (int d = 0; d < hd; d++) {
          const double got = out[(row * w.shape.heads + h) * hd + d];
          const double off = std::fabs(got - e.value[d]);
          worst = std::max(worst, e.bound[d] > 0 ? off / e.bound[d] : off > 0 ? 1e9 : 0);
          if (!(off <= e.bound[d]))
            check(false, what, w.shape, "sequence " + std::to_string(s) + " position " + std::to_string(p) + " head " +
                  std::to_string(h) + " column " + std::to_string(d) + ": " + std::to_string(got) + ", expected " +
                  std::to_string(e.value[d]) + " within " + std::to_string(e.bound[d]));
        }
      }
    }
  }
  std::printf("%-10s %-14s heads %2d/%d head dim %3d dtype %d: worst error %.3f of its bound\n", variant->name, what,
              w.shape.heads, w.shape.kv_heads, hd, w.shape.dtype, worst);
}

// The same rows in random chunks and batches: every output bit equals that of one thread with all rows at once. `grow`:
// keys are written chunk by chunk, so that later keys of a tile are still zero (causal rows only).
void check_bits(World& w, const char* what, bool grow, std::mt19937_64& random, int rounds) {
  w.clear();
  w.write(everything(w));
  const i64 columns = i64{w.shape.heads} * w.shape.head_dim;
  const auto want = w.attend(everything(w), 1, 0);
  std::vector<size_t> first{0};
  for (int n : w.lengths) first.push_back(first.back() + n);
  if (variant != built_variants().front()) rounds = 1;  // the code that shares work is the same source
  for (int round = 0; round < rounds; round++) {
    if (grow) w.clear();
    std::vector<int> done(w.lengths.size());
    const int most = 1 + int(random() % (random() % 3 == 0 ? 3 : random() % 2 ? 40 : 300));
    const int threads = 1 + int(random() % 3);
    const i64 workspace = random() % 2 ? i64{4} << 20 : 0, scratch = random() % 4 ? 1 << 18 : 50000;
    for (bool left = true; left;) {
      left = false;
      std::vector<Part> parts;
      for (size_t s = 0; s < w.lengths.size(); s++) {
        const int rest = w.lengths[s] - done[s];
        if (rest == 0) continue;
        left = true;
        if (random() % 4 == 0) continue;  // not in this step
        parts.push_back({int(s), done[s], std::min(rest, 1 + int(random() % most))});
      }
      if (parts.empty()) continue;
      std::shuffle(parts.begin(), parts.end(), random);
      if (grow) w.write(parts);
      const auto got = w.attend(parts, threads, workspace, scratch);
      size_t row = 0;
      for (const Part& p : parts) {
        const float* expected = want.data() + (first[p.sequence] + p.from) * columns;
        const bool same = std::memcmp(got.data() + row * columns, expected, size_t(p.count) * columns * 4) == 0;
        check(same, what, w.shape, "sequence " + std::to_string(p.sequence) + " rows " + std::to_string(p.from) + " + " +
              std::to_string(p.count) + ", " + std::to_string(threads) + " threads, workspace " +
              std::to_string(workspace) + ", scratch " + std::to_string(scratch));
        row += p.count;
        done[p.sequence] += p.count;
      }
    }
  }
}

void check_rope() {
  std::mt19937_64 random(5);
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (const auto& [head_dim, rotary] : {std::pair{64, 64}, {128, 128}, {16, 16}, {80, 80}, {96, 48}, {64, 16}, {256, 256}}) {
    const int rows = 5, heads = 3, half = rotary / 2, cols = heads * head_dim;
    std::vector<float> cos(64 * half), sin(64 * half), x(rows * cols);
    for (auto* t : {&cos, &sin, &x})
      for (float& f : *t) f = uniform(random);
    std::vector<int32_t> position = {9, 3, 60, 0, 63};
    Step step = {};
    step.row_pos = position.data() - 2;  // the tile starts at row 2
    Run run = {};
    run.step = &step;
    const i64 args[] = {i64(cos.data()), i64(sin.data()), head_dim, rotary};
    auto y = x;
    Tile tile{y.data(), cols, rows, 2, cols, 0};
    entry<TileFn>("tile.rope")(args, run, tile);
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < cols; c++) {
        const int d = c % head_dim, i = d % half;
        const float* at = &x[r * cols + c - d];
        double want = at[d], size = 0;
        if (d < rotary) {
          const double cs = cos[position[r] * half + i], sn = sin[position[r] * half + i];
          want = d < half ? at[i] * cs - at[half + i] * sn : at[half + i] * cs + at[i] * sn;
          size = std::fabs(at[i]) + std::fabs(at[half + i]);
        }
        check(std::fabs(y[r * cols + c] - want) <= 3 * kUnit * size, "rope", {heads, heads, head_dim, 0},
              "row " + std::to_string(r) + " column " + std::to_string(c));
      }
  }
}

void check_activations() {
  for (const int half : {32, 20, 1}) {
    std::vector<float> x(3 * (2 * half + 5));
    std::mt19937_64 random(half);
    std::normal_distribution<float> normal(0, 4);
    for (float& f : x) f = normal(random);
    x[0] = -200;  // exp overflows: the result is a zero
    for (const bool gelu : {false, true}) {
      auto y = x;
      Tile tile{y.data(), 2 * half + 5, 3, 0, 2 * half, 0};
      entry<TileFn>(gelu ? "tile.gelu_mul" : "tile.silu_mul")(nullptr, Run{}, tile);
      check(tile.cols == half, "activation", {}, "the tile keeps its columns");
      for (int r = 0; r < 3; r++)
        for (int c = 0; c < half; c++) {
          const double g = x[r * tile.ld + c], u = x[r * tile.ld + half + c];
          const double y3 = 2 * std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g), z = gelu ? y3 : g;
          const double want = g / (1 + std::exp(-z)) * u;
          // an error of 4 units in the exponent's argument, 8 more in the rest
          const double bound = std::fabs(want) * (8 + 4 * std::fabs(z)) * kUnit + 1e-37;
          check(std::fabs(y[r * tile.ld + c] - want) <= bound, "activation", {},
                std::to_string(g) + " * " + std::to_string(u) + " gave " + std::to_string(y[r * tile.ld + c]));
        }
    }
  }
}

std::pair<int, int> causal(int, int p) { return {0, p + 1}; }

// A key or value that is not a number reaches every row that sees it (the sampler then ends the sequence), no other head
// or sequence, and no row of the same sequence but those computed together with one that sees it.
void check_not_a_number(int dtype) {
  for (const bool in_v : {false, true}) {
    World w({4, 2, 64, dtype}, {300, 90}, causal, 3);
    w.write(everything(w));
    const auto want = w.attend(everything(w), 1, 0);
    (in_v ? w.v : w.k)[0][70 * 2 * 64 + 5] = NAN;  // position 70, head 0
    w.write(everything(w));
    const auto got = w.attend(everything(w), 1, 0);
    for (int row = 0; row < 390; row++)
      for (int h = 0; h < 4; h++) {
        const size_t i = (row * 4 + h) * 64 + 5;
        const bool near = row >= 54 && row < 300 && h < 2, hit = near && row >= 70;  // blocks of 16 rows at most
        check(hit ? std::isnan(got[i]) : near || got[i] == want[i], "not a number", w.shape,
              "row " + std::to_string(row) + " head " + std::to_string(h) + " gave " + std::to_string(got[i]));
      }
  }
}

// Neither ascending nor causal; some rows see nothing.
std::pair<int, int> anyhow(int s, int p) {
  const int lo = (p * 37 + s) % 200;
  return {lo, std::min(290, lo + (p * 11) % 150)};
}

const int kShapes[][3] = {{9, 3, 64}, {14, 2, 64}, {12, 2, 128}, {4, 4, 16}, {2, 1, 32}, {4, 1, 80},
                          {5, 1, 96}, {4, 1, 256}, {8, 1, 64}, {10, 1, 48}, {26, 1, 16}};  // heads, KV heads, head dim

World capped_world(int dtype, uint64_t seed) {
  World w({9, 3, 64, dtype}, {280}, causal, seed, 20.0f);
  w.cap = 5;
  w.sinks = {-1, 0, 1, 2, 3, 30, -30, 5, 0.5f};
  return w;
}

void check_dtype(int dtype) {
  std::mt19937_64 random(1);
  const auto window = [](int, int p) { return std::pair{std::max(0, p - 99), p + 1}; };
  uint64_t seed = 7;
  for (const auto& [heads, kv, hd] : kShapes) {
    const Shape s{heads, kv, hd, dtype};
    World plain(s, {70, 1, 270}, causal, seed++);
    check_values(plain, "causal");
    check_bits(plain, "causal bits", true, random, 2);
    World narrow(s, {200, 33}, window, seed++);
    check_bits(narrow, "window bits", true, random, 1);
  }
  const Shape s{9, 3, 64, dtype};
  World sharp(s, {600, 17}, causal, seed++, 8.0f);
  check_values(sharp, "sharp");
  check_bits(sharp, "sharp bits", true, random, 3);
  World narrow(s, {700, 40}, window, seed++);
  check_values(narrow, "window");
  World odd(s, {290, 290}, anyhow, seed++);
  check_values(odd, "any lo and hi");
  check_bits(odd, "any bits", false, random, 3);
  World capped = capped_world(dtype, seed++);
  check_values(capped, "cap and sinks");
  check_bits(capped, "cap and sinks bits", true, random, 2);
  World many(s, {1, 5, 31, 32, 33, 255, 256, 257, 513, 2}, causal, seed++);
  check_bits(many, "batch bits", true, random, 2);
  check_not_a_number(dtype);
}

// Every variant that has fma gives the bits of the first one, but for the bf16 dot product over bf16 pages.
void check_class(World w, const std::vector<const Variant*>& variants) {
  std::vector<float> want;
  for (const Variant* v : variants) {
    variant = v;
    if (uses_bf16_dot(w.shape)) continue;
    w.clear();
    w.write(everything(w));
    const auto got = w.attend(everything(w), 2, 0);
    if (want.empty()) want = got;
    check(got.size() == want.size() && !std::memcmp(got.data(), want.data(), got.size() * 4), "class", w.shape,
          "differs from another variant of its class");
  }
}

void check_classes() {
  std::vector<const Variant*> variants;
  for (const Variant* v : built_variants())
    if (processor_runs(v->name) && std::string(v->name) != "portable") variants.push_back(v);
  for (const int dtype : {kKvBf16, kKvFloat, kKvInt8, kKvHalf}) {
    for (const auto& [heads, kv, hd] : kShapes) check_class(World({heads, kv, hd, dtype}, {70, 1, 270}, causal, 7), variants);
    check_class(World({9, 3, 64, dtype}, {290, 290}, anyhow, 8), variants);
    check_class(capped_world(dtype, 9), variants);
  }
  std::printf("classes: %zu variants with fma agree\n", variants.size());
}

void check_variant(const Variant* v) {
  variant = v;
  check_rope();
  check_activations();
  for (const int dtype : {kKvBf16, kKvFloat, kKvInt8, kKvHalf}) check_dtype(dtype);
}

}  // namespace

int main(int count, char** words) {
  const std::string which = count > 1 ? words[1] : "";
  if (which.empty() || which == "classes") check_classes();
  for (const Variant* v : built_variants())
    if ((which.empty() || which == v->name) && processor_runs(v->name)) check_variant(v);
  std::printf(failures ? "%d FAILED\n" : "all passed\n", failures);
  return failures != 0;
}
