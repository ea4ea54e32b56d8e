// Linears of every variant, format and shape against the scalar oracle, bit for bit; the row ops beside them; the kernel
// "linear" over threads, shared and own activations, gathers, pairs and ragged ends. Built with ASan and UBSan, so buffers
// have their exact sizes.
#include <barrier>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "isa.h"
#include "oracle.h"

namespace {
using namespace octavo;

int failures = 0;
std::mt19937 rng(20261123);

void expect(bool good, const std::string& what) {
  if (good) return;
  if (++failures <= 20) std::printf("FAILED: %s\n", what.c_str());
}
float uniform(float lo, float hi) { return std::uniform_real_distribution<float>(lo, hi)(rng); }
int whole(int lo, int hi) { return std::uniform_int_distribution<int>(lo, hi)(rng); }

struct Case {
  const char* id;
  i64 block, span;      // bytes of 32 columns x span k
  i64 scales, scaling;  // bytes of halves (float formats: of elements) in a block, and where they begin
  char type;            // of those: h: half, f: float, b: bf16, e: exponent; every other byte of a block is any byte
  bool packed;
};
const Case kCases[] = {
    {"q4_0.p32.k4.1", 576, 32, 64, 512, 'h', true},    {"q4_1.p32.k4.1", 640, 32, 128, 512, 'h', true},
    {"q8_0.p32.k4.1", 1088, 32, 64, 1024, 'h', true},  {"q5_0.p32.k4.1", 704, 32, 64, 640, 'h', true},
    {"q5_1.p32.k4.1", 768, 32, 128, 640, 'h', true},   {"q2_k.p32.k4.1", 2688, 256, 128, 2560, 'h', true},
    {"q3_k.p32.k4.1", 3520, 256, 64, 3072, 'h', true},  {"q4_k.p32.k4.1", 4608, 256, 128, 4096, 'h', true},
    {"q5_k.p32.k4.1", 5632, 256, 128, 5120, 'h', true}, {"q6_k.p32.k4.1", 6720, 256, 64, 6656, 'h', true},
    {"iq4_nl.p32.k4.1", 576, 32, 64, 512, 'h', true},   {"iq4_xs.p32.k4.1", 4352, 256, 64, 4096, 'h', true},
    {"mxfp4.p32.k4.1", 544, 32, 32, 512, 'e', true},    {"iq3_s.p32.k4.1", 4416, 256, 64, 4096, 'h', true},
    {"iq3_xxs.p32.k4.1", 4416, 256, 64, 4096, 'h', true}, {"iq2_s.p32.k4.1", 4672, 256, 64, 4096, 'h', true},
    {"iq2_xs.p32.k4.1", 4672, 256, 64, 4096, 'h', true}, {"iq2_xxs.p32.k4.1", 4416, 256, 64, 4096, 'h', true},
    {"iq1_m.p32.k4.1", 4672, 256, 64, 4096, 'h', true}, {"iq1_s.p32.k4.1", 4416, 256, 64, 4096, 'h', true},
    {"tq2_0.p32.k4.1", 2112, 256, 64, 2048, 'h', true}, {"int8.p32.k4.1", 1152, 32, 128, 1024, 'h', true},
    {"bf16.p32.k1.1", 64, 1, 64, 0, 'b', false},       {"f16.p32.k1.1", 64, 1, 64, 0, 'h', false},
    {"f32.p32.k1.1", 128, 1, 128, 0, 'f', false},
    {"q2_k.p32.k4.1.s256", 2688, 256, 128, 2560, 'h', true}, {"q3_k.p32.k4.1.s256", 3520, 256, 64, 3072, 'h', true},
    {"q4_k.p32.k4.1.s256", 4608, 256, 128, 4096, 'h', true}, {"q5_k.p32.k4.1.s256", 5632, 256, 128, 5120, 'h', true},
    {"q6_k.p32.k4.1.s256", 6720, 256, 64, 6656, 'h', true},  {"iq4_xs.p32.k4.1.s256", 4352, 256, 64, 4096, 'h', true},
};
const Case& case_of(const char* id) {
  for (const Case& c : kCases) {
    if (std::strcmp(c.id, id) == 0) return c;
  }
  std::abort();
}

void put(std::vector<uint8_t>& to, size_t at, float v, char type) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  if (type == 'f') {
    std::memcpy(&to[at], &bits, 4);
  } else if (type == 'e') {  // of values up to 2^20, and the denormal ones
    to[at] = static_cast<uint8_t>(whole(0, 7) ? whole(100, 148) : whole(0, 2));
  } else if (type == 'b') {
    std::memcpy(&to[at], reinterpret_cast<uint8_t*>(&bits) + 2, 2);
  } else {  // any half of either sign below 2: also denormals and zero
    const uint16_t half = static_cast<uint16_t>(whole(0, 0x3fff) | whole(0, 1) << 15);
    std::memcpy(&to[at], &half, 2);
  }
}

// Random panels; codes take their extremes often, so that a sum of 16 bits that is too small would overflow.
std::vector<uint8_t> weights(const Case& c, i64 K, i64 panels) {
  const size_t blocks = static_cast<size_t>(panels * (K / c.span)), block = static_cast<size_t>(c.block);
  std::vector<uint8_t> w(blocks * block);
  const size_t size = c.type == 'f' ? 4 : c.type == 'e' ? 1 : 2, first = static_cast<size_t>(c.scaling);
  for (size_t at = 0; at < w.size(); at += block) {
    const bool extreme = whole(0, 3) == 0;
    for (size_t i = 0; i < block; i++) w[at + i] = static_cast<uint8_t>(extreme ? 255 : whole(0, 255));
    for (size_t i = first; i < first + static_cast<size_t>(c.scales); i += size) put(w, at + i, uniform(-0.1f, 0.1f), c.type);
  }
  return w;
}

std::vector<float> values(i64 n) {
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t g = 0; g < x.size(); g += 32) {
    const int kind = whole(0, 9);
    const float size = whole(0, 9) ? 1.0f : 30.0f;  // some groups outdo their neighbours by far
    for (size_t i = g; i < g + 32 && i < x.size(); i++) {
      x[i] = kind == 0 ? 0.0f : kind == 1 ? 2.5f : kind == 2 ? -1.5f : kind == 3 ? 1e-38f * uniform(-9, 9) : uniform(-3, 3) * size;
    }
  }
  return x;
}

// Values that share a scale in the activations of a format.
i64 span_of(const Case& c) {
  return std::string(c.id).find(".s256") == std::string::npos ? 32 : 256;
}
// Some variants alone sum super-blocks in integers.
bool built(const Variant& v, const Case& c) { return span_of(c) == 32 || find_entry(v, std::string("format.") + c.id); }

std::vector<uint8_t> activations(const Case& c, const std::vector<float>& x, i64 K, i64 rows) {
  const i64 stride = c.packed ? act_row_bytes(K, span_of(c)) : K * 4;
  std::vector<uint8_t> acts(static_cast<size_t>(stride * rows));
  for (i64 r = 0; r < rows; r++) {
    if (c.packed) {
      oracle_quantize_row(&x[static_cast<size_t>(r * K)], K, span_of(c), &acts[static_cast<size_t>(r * stride)]);
    } else {
      std::memcpy(&acts[static_cast<size_t>(r * stride)], &x[static_cast<size_t>(r * K)], static_cast<size_t>(K) * 4);
    }
  }
  return acts;
}

template <class T>
T entry(const Variant& variant, const std::string& name) {
  const void* found = find_entry(variant, name);
  expect(found != nullptr, std::string(variant.name) + " lacks " + name);
  return reinterpret_cast<T>(const_cast<void*>(found));
}
bool fused(const Variant& variant) { return std::string(variant.name) != "portable"; }
bool same(const float* a, const float* b, i64 n) { return std::memcmp(a, b, static_cast<size_t>(n) * 4) == 0; }

// Every number of rows and panels, in several ways, against one product of the oracle: none of them changes a bit.
void test_shapes(const std::vector<const Variant*>& variants, const Case& c, i64 K, const std::vector<i64>& rows_of) {
  const i64 rows = rows_of.back(), panels = 5, N = panels * 32;
  const std::vector<uint8_t> w = weights(c, K, panels);
  const std::vector<uint8_t> acts = activations(c, values(rows * K), K, rows);
  std::map<bool, std::vector<float>> want;
  for (const Variant* variant : variants) {
    if (!built(*variant, c)) continue;
    std::vector<float>& oracle = want[fused(*variant)];
    if (oracle.empty()) {
      oracle.resize(static_cast<size_t>(rows * N));
      expect(oracle_linear(c.id, w.data(), K, panels, acts.data(), rows, oracle.data(), N, fused(*variant)), c.id);
    }
    const auto* format = entry<const Format*>(*variant, std::string("format.") + c.id);
    if (!format) continue;
    const i64 panel = static_cast<i64>(w.size()) / panels;
    expect(format->panel_bytes(K) == panel, std::string(c.id) + " panel bytes");
    std::vector<uint8_t> scratch(static_cast<size_t>(format->scratch_bytes(K)) + 64);
    const i64 matrix = variant->name == std::string(kMatrixVariant) ? 2 : 0;
    const std::vector<Way> ways = {{nullptr, format->unpack_rows, 8, matrix}, {nullptr, 7, 1, 0}, {nullptr, 0, 24, matrix}};
    for (const i64 m : rows_of) {
      for (const i64 p : {i64{1}, i64{2}, i64{3}, i64{5}}) {
        const i64 skip = panels - p, ld = p * 32 + 3;  // the last p panels: also an odd start
        std::vector<float> out(static_cast<size_t>(m * ld), -7.0f);
        const Way way = ways[static_cast<size_t>(m + p) % ways.size()];
        const Way own = {scratch.data(), way.unpack_rows, way.ahead_steps, way.matrix_rows};
        format->linear(w.data() + skip * panel, K, p, acts.data(), m, out.data(), ld, own);
        bool good = true;
        for (i64 r = 0; r < m; r++) {
          good = good && same(&out[static_cast<size_t>(r * ld)], &oracle[static_cast<size_t>(r * N + skip * 32)], p * 32);
          for (i64 i = p * 32; i < ld; i++) good = good && out[static_cast<size_t>(r * ld + i)] == -7.0f;
        }
        expect(good, std::string(variant->name) + " " + c.id + " K " + std::to_string(K) + " rows " + std::to_string(m) +
                         " panels " + std::to_string(p));
      }
    }
  }
}

// A column is the linear of a unit vector: for packed formats up to the roundings of two terms, up to 2 * 63 * 31 in super-blocks.
void test_column(const Variant& variant, const Case& c) {
  const i64 K = c.span == 256 ? 512 : 96;
  const std::vector<uint8_t> w = weights(c, K, 1);
  const auto* format = entry<const Format*>(variant, std::string("format.") + c.id);
  std::vector<float> x(static_cast<size_t>(K * K), 0.0f);
  for (i64 k = 0; k < K; k++) x[static_cast<size_t>(k * K + k)] = 127.0f;
  const std::vector<uint8_t> acts = activations(c, x, K, K);  // scale 1, code 127
  std::vector<float> product(static_cast<size_t>(K * 32)), column(static_cast<size_t>(K));
  oracle_linear(c.id, w.data(), K, 1, acts.data(), K, product.data(), 32, true);
  for (int n = 0; n < 32; n++) {
    format->column(w.data(), K, n, column.data());
    for (i64 k = 0; k < K; k++) {
      const float got = column[static_cast<size_t>(k)] * 127.0f, want = product[static_cast<size_t>(k * 32 + n)];
      expect(std::fabs(got - want) <= 4e-7f * 127.0f * (std::fabs(column[static_cast<size_t>(k)]) + (c.span == 256 ? 1200.0f : 4.0f)),
             std::string(variant.name) + " column of " + c.id + " k " + std::to_string(k));
    }
  }
}

void test_rows(const Variant& variant) {
  const auto quantize = entry<TileFn>(variant, "tile.quantize");
  const auto norm = entry<RowFn>(variant, "row.rms_norm");
  const Run run = {};
  for (const i64 K : {32, 64, 96, 576, 256, 1280}) {
    const i64 span = K % 256 == 0 ? 256 : 32;
    std::vector<float> x = values(3 * K);
    std::vector<uint8_t> want(static_cast<size_t>(3 * act_row_bytes(K, span))), got(want.size());
    for (i64 r = 0; r < 3; r++) {
      oracle_quantize_row(&x[static_cast<size_t>(r * K)], K, span, &want[static_cast<size_t>(r * act_row_bytes(K, span))]);
    }
    const i64 args[] = {reinterpret_cast<i64>(got.data()), K, span};
    for (i64 col0 = 0; col0 < K; col0 += span) {  // in pieces, as a consumer's tiles come
      Tile tile = {x.data() + K + col0, K, 2, 1, span, col0};
      quantize(args, run, tile);
    }
    Tile first = {x.data(), K, 1, 0, K, 0};
    quantize(args, run, first);
    expect(want == got, std::string(variant.name) + " quantize K " + std::to_string(K));
  }
  for (const i64 K : {5, 16, 33, 100, 576}) {
    std::vector<float> x = values(K), weight = values(K), want(x.size());
    uint32_t eps;
    const float epsilon = 1e-5f;
    std::memcpy(&eps, &epsilon, 4);
    oracle_rms_norm(x.data(), weight.data(), K, epsilon, fused(variant), want.data());
    const i64 args[] = {reinterpret_cast<i64>(weight.data()), eps};
    norm(args, run, 0, x.data(), K);
    expect(same(x.data(), want.data(), K), std::string(variant.name) + " rms_norm K " + std::to_string(K));
  }
  std::vector<float> bad(32, 1.0f);
  for (const float v : {INFINITY, NAN}) {
    std::vector<uint8_t> row(static_cast<size_t>(act_row_bytes(32, 32)));
    bad[7] = v;
    const i64 args[] = {reinterpret_cast<i64>(row.data()), 32, 32};
    Tile tile = {bad.data(), 32, 1, 0, 32, 0};
    quantize(args, run, tile);
    expect(!std::isfinite(act_groups(row.data())->scale), std::string(variant.name) + " hides a value that is not finite");
  }
}

// gate + up, so that the epilogue is more than a copy.
void add_pair(const i64*, const Run&, Tile& tile) {
  tile.cols /= 2;
  for (i64 r = 0; r < tile.rows; r++) {
    for (i64 c = 0; c < tile.cols; c++) tile.data[r * tile.ld + c] += tile.data[r * tile.ld + tile.cols + c];
  }
}
i64 address(const void* p) { return reinterpret_cast<i64>(p); }
void meet(const Run& run, int, i64) { static_cast<std::barrier<>*>(run.team)->arrive_and_wait(); }

struct Shape {
  i64 rows, K, threads, share_rows, scratch;
  bool quantized, gathered;
};

// Two groups: a single weight of ragged width with bias and store, and a pair with add.
void test_kernel(const Variant& variant, const Shape& s) {
  const bool sums = s.K % 256 == 0 && find_entry(variant, "format.q4_k.p32.k4.1.s256") != nullptr;
  const char *super = sums ? "q4_k.p32.k4.1.s256" : "q4_k.p32.k4.1", *second = sums ? "q6_k.p32.k4.1.s256" : "q6_k.p32.k4.1";
  const Case& c = case_of(s.quantized ? s.K % 256 ? "q4_1.p32.k4.1" : super : "bf16.p32.k1.1");
  const Case& other = case_of(s.quantized ? s.K % 256 ? "q5_0.p32.k4.1" : second : "f32.p32.k1.1");
  const i64 N0 = 150, N1 = 96, stride = s.quantized ? act_row_bytes(s.K, span_of(c)) : s.K * 4, source = s.rows + 2;
  std::vector<uint8_t> w0 = weights(c, s.K, 5), gate = weights(other, s.K, 3), up = weights(c, s.K, 3);
  std::vector<float> src = values(source * s.K), norm = values(s.K), bias = values(N0), residual = values(s.rows * N1);
  std::vector<float> out0(static_cast<size_t>(s.rows * N0)), out1(residual.size()), rows(static_cast<size_t>(s.rows * s.K));
  std::vector<int32_t> gather(static_cast<size_t>(s.rows) + 1);
  for (auto& row : gather) row = whole(0, static_cast<int>(source) - 1);
  const float eps = 1e-6f;
  uint32_t eps_bits;
  std::memcpy(&eps_bits, &eps, 4);
  for (i64 r = 0; r < s.rows; r++) {
    const i64 from = s.gathered ? gather[static_cast<size_t>(r + 1)] : r;
    oracle_rms_norm(&src[static_cast<size_t>(from * s.K)], norm.data(), s.K, eps, fused(variant), &rows[static_cast<size_t>(r * s.K)]);
  }
  const std::vector<uint8_t> acts = activations(c, rows, s.K, s.rows);
  std::vector<float> p0(static_cast<size_t>(s.rows * 160)), p1(static_cast<size_t>(s.rows * N1)), p2(p1.size());
  oracle_linear(c.id, w0.data(), s.K, 5, acts.data(), s.rows, p0.data(), 160, fused(variant));
  oracle_linear(other.id, gate.data(), s.K, 3, acts.data(), s.rows, p1.data(), N1, fused(variant));
  oracle_linear(c.id, up.data(), s.K, 3, acts.data(), s.rows, p2.data(), N1, fused(variant));

  const auto name = [&](const char* op) { return address(find_entry(variant, op)); };
  const i64 format = name((std::string("format.") + c.id).c_str());
  std::vector<uint8_t> shared(static_cast<size_t>(stride * s.rows));
  const i64 args[] = {0, s.K, address(src.data()), s.K, address(shared.data()), s.quantized ? span_of(c) : 0, s.share_rows,
                      s.gathered ? address(gather.data()) : 0, 1, name("row.rms_norm"), 2, address(norm.data()), eps_bits, 2,
                      64, 3, N0, 1, address(w0.data()), format, 2, name("tile.bias"), 1, address(bias.data()),
                      name("tile.store"), 2, address(out0.data()), N0,
                      32, 3, N1, 2, address(gate.data()), name((std::string("format.") + other.id).c_str()), address(up.data()),
                      format, 2, address(reinterpret_cast<const void*>(&add_pair)), 0, name("tile.add"), 4,
                      address(residual.data()), N1, address(out1.data()), N1};
  int64_t header[64] = {};
  header[H_logit_first] = 1;
  Step step = {};
  step.header = header;
  std::barrier<> team(s.threads);
  Tuning tuning;
  const auto* tuned = entry<const Format*>(variant, std::string("format.") + c.id);
  if (s.rows % 2) tuning = {5, s.share_rows / 2, variant.name == std::string(kMatrixVariant), {{tuned, 9, 7}}};
  std::vector<std::thread> threads;
  const auto kernel = entry<Kernel>(variant, "linear");
  for (int t = 0; t < s.threads; t++) {
    threads.emplace_back([&, t] {
      std::vector<uint8_t> scratch(static_cast<size_t>(s.scratch) + 64);
      uint8_t* aligned = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64;
      Run run = {};
      run.thread = t;
      run.threads = static_cast<int>(s.threads);
      run.team = &team;
      run.meet = meet;
      run.scratch = aligned;
      run.scratch_bytes = s.scratch;
      run.dims = &s.rows;
      run.step = &step;
      run.tuning = &tuning;
      kernel(args, run);
    });
  }
  for (auto& thread : threads) thread.join();
  bool good = true;
  for (i64 r = 0; r < s.rows; r++) {
    for (i64 n = 0; n < N0; n++) {
      const float want = p0[static_cast<size_t>(r * 160 + n)] + bias[static_cast<size_t>(n)];
      good = good && same(&out0[static_cast<size_t>(r * N0 + n)], &want, 1);
    }
    for (i64 n = 0; n < N1; n++) {
      const size_t i = static_cast<size_t>(r * N1 + n);
      const float want = residual[i] + (p1[i] + p2[i]);
      good = good && same(&out1[i], &want, 1);
    }
  }
  expect(good, std::string(variant.name) + " kernel linear rows " + std::to_string(s.rows) + " threads " +
                   std::to_string(s.threads) + " share " + std::to_string(s.share_rows));
}

void test_embedding(const Variant& variant, const Case& c) {
  const i64 K = 512, rows = 5, L = 8;
  const std::vector<uint8_t> w = weights(c, K, 3);
  const auto* format = entry<const Format*>(variant, std::string("format.") + c.id);
  std::vector<int32_t> ids(2 * L);
  for (auto& id : ids) id = whole(0, 95);
  int32_t slot[] = {1, 1, 0, 0, 1}, position[] = {3, 4, 0, 7, 5};
  Step step = {};
  step.row_slot = slot;
  step.row_pos = position;
  Slots slots = {};
  slots.L = L;
  slots.ids = ids.data();
  std::vector<float> out(static_cast<size_t>(rows * K)), want(static_cast<size_t>(K));
  const float scale = 3.0f;
  uint32_t scale_bits;
  std::memcpy(&scale_bits, &scale, 4);
  const i64 args[] = {0, K, address(w.data()), address(format), address(out.data()), scale_bits, 0};
  for (int t = 0; t < 3; t++) {
    Run run = {};
    run.thread = t;
    run.threads = 3;
    run.dims = &rows;
    run.step = &step;
    run.slots = &slots;
    entry<Kernel>(variant, "embedding")(args, run);
  }
  for (i64 r = 0; r < rows; r++) {
    const int id = ids[static_cast<size_t>(slot[r] * L + position[r])];
    format->column(w.data() + id / 32 * format->panel_bytes(K), K, id % 32, want.data());
    for (auto& v : want) v *= scale;
    expect(same(&out[static_cast<size_t>(r * K)], want.data(), K), std::string(variant.name) + " embedding");
  }
}

}  // namespace

int main() {
  std::vector<const Variant*> variants;
  for (const Variant* variant : built_variants()) {
    if (processor_runs(variant->name)) variants.push_back(variant);
  }
  for (const Case& c : kCases) {
    for (const i64 K : {32, 64, 96, 256, 576, 768}) {
      if (K % c.span == 0) test_shapes(variants, c, K, {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 48});
    }
    test_shapes(variants, c, 1536, {1, 4, 9, 13});
    test_shapes(variants, c, c.span == 256 ? 256 : 64, {512});
  }
  for (const Variant* variant : variants) {
    for (const Case& c : kCases) {
      if (!built(*variant, c)) continue;
      test_column(*variant, c);
      test_embedding(*variant, c);
    }
    test_rows(*variant);
    const i64 few = entry<const Format*>(*variant, "format.q4_1.p32.k4.1")->scratch_bytes(160) + 10240;
    for (const bool quantized : {true, false}) {
      for (const i64 threads : {1, 2, 3}) {
        for (const i64 rows : {1, 7, 33}) {
          for (const i64 share : {0, 100}) {
            test_kernel(*variant, {rows, 160, threads, share, 1 << 19, quantized, rows == 7});
          }
          test_kernel(*variant, {rows, 160, threads, 0, few, quantized, false});  // blocks of a few rows
          test_kernel(*variant, {rows, 256, threads, 100, 1 << 19, quantized, false});
        }
        test_kernel(*variant, {200, 160, threads, 0, 1 << 19, quantized, false});  // 1 and 2 threads: rows are divided
      }
    }
    std::printf("%s tested\n", variant->name);
  }
  std::printf(failures ? "%d failures\n" : "all equal\n", failures);
  return failures != 0;
}
