// The kernel "moe" of every variant against scalar code, bit for bit: odd counts of rows, experts and columns, blocks of any
// size, routes by each thread or by all, 1 to 3 threads. Built with ASan and UBSan, so buffers have their exact sizes; the
// scratch is what ops/moe.py plans.
#include <algorithm>
#include <barrier>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "isa.h"
#include "oracle.h"

namespace {
using namespace octavo;

int failures = 0;
std::mt19937 rng(20261129);

void expect(bool good, const std::string& what) {
  if (good) return;
  if (++failures <= 20) std::printf("FAILED: %s\n", what.c_str());
}
int whole(int lo, int hi) { return std::uniform_int_distribution<int>(lo, hi)(rng); }
std::vector<float> values(i64 count) {
  std::vector<float> all(static_cast<size_t>(count));
  for (float& value : all) value = std::normal_distribution<float>(0, 1)(rng);
  return all;
}
i64 address(const void* p) { return reinterpret_cast<i64>(p); }
void meet(const Run& run, int, i64) { static_cast<std::barrier<>*>(run.team)->arrive_and_wait(); }

// gate + up: what joins them must be exact here.
void add_pair(const i64*, const Run&, Tile& tile) {
  tile.cols /= 2;
  for (i64 r = 0; r < tile.rows; r++) {
    for (i64 c = 0; c < tile.cols; c++) tile.data[r * tile.ld + c] += tile.data[r * tile.ld + tile.cols + c];
  }
}

struct Shape {
  i64 rows, experts, chosen, width, inner, block, share, threads;
  bool quantized, biased;
};

// Weights of all experts: Q8_0 panels (1088 bytes of 32 x 32, small scales) or floats.
std::vector<uint8_t> stack(const Shape& s, i64 columns, i64 K) {
  const i64 panels = (columns + 31) / 32 * s.experts;
  std::vector<uint8_t> found(static_cast<size_t>(panels * (s.quantized ? K / 32 * 1088 : K * 128)));
  if (!s.quantized) {
    const std::vector<float> floats = values(panels * K * 32);
    std::memcpy(found.data(), floats.data(), found.size());
    return found;
  }
  for (size_t i = 0; i < found.size(); i++) found[i] = static_cast<uint8_t>(whole(0, 255));
  for (size_t block = 0; block < found.size(); block += 1088) {
    for (size_t i = 1024; i < 1088; i += 2) found[block + i + 1] = static_cast<uint8_t>(whole(0x20, 0x24));  // 2^-7 to 2^-6
  }
  return found;
}

struct World {
  Shape s;
  bool fused;
  std::vector<uint8_t> weights[3], acts, inner;
  std::vector<float> bias[3], x, logits, out;
  std::vector<int32_t> routes;  // ids, then weights
  i64 active = -1;

  const char* layout() const { return s.quantized ? "q8_0.p32.k4.1" : "f32.p32.k1.1"; }
  i64 columns(int which) const { return which == 2 ? s.width : s.inner; }
  i64 k(int which) const { return which == 2 ? s.inner : s.width; }
  i64 stride(i64 K) const { return s.quantized ? act_row_bytes(K, 32) : K * 4; }
  i64 span() const { return s.quantized ? 32 : 0; }
  std::vector<uint8_t> ready(const std::vector<float>& rows, i64 K) const {
    std::vector<uint8_t> found(rows.size() / static_cast<size_t>(K) * static_cast<size_t>(stride(K)));
    for (size_t r = 0; r * static_cast<size_t>(K) < rows.size(); r++) {
      uint8_t* to = found.data() + r * static_cast<size_t>(stride(K));
      if (s.quantized) oracle_quantize_row(&rows[r * static_cast<size_t>(K)], K, 32, to);
      else std::memcpy(to, &rows[r * static_cast<size_t>(K)], static_cast<size_t>(K) * 4);
    }
    return found;
  }

  World(const Shape& shape, bool fuses) : s(shape), fused(fuses) {
    for (int i = 0; i < 3; i++) weights[i] = stack(s, columns(i), k(i)), bias[i] = values(s.experts * columns(i));
    x = values(s.rows * s.width);
    logits = values(s.rows * s.experts);
    for (float& logit : logits) logit = static_cast<float>(static_cast<int>(logit * 3));  // ties
    acts = ready(x, s.width);
    inner.resize(static_cast<size_t>(s.rows * s.chosen * stride(s.inner)));
    out.resize(x.size());
    routes.resize(static_cast<size_t>(2 * s.rows * s.chosen));
  }

  void run(const Variant& variant) {
    const auto name = [&](const std::string& entry) { return address(find_entry(variant, entry.c_str())); };
    const i64 format = name(std::string("format.") + layout());
    const auto biased = [&](int i) { return s.biased ? address(bias[i].data()) : 0; };
    const i64 args[] = {0, address(logits.data()), s.experts, s.experts, s.chosen, 0, s.share, address(routes.data()), s.block,
                        address(&active),
                        address(acts.data()), span(), s.width, s.inner, 2, address(weights[0].data()), format, biased(0),
                        address(weights[1].data()), format, biased(1), 2, address(reinterpret_cast<const void*>(&add_pair)), 0,
                        name(s.quantized ? "tile.quantize" : "tile.store"), 3, address(inner.data()), s.inner, span(),
                        address(inner.data()), span(), s.inner, s.width, 1, address(weights[2].data()), format, biased(2),
                        1, name("tile.store"), 2, address(out.data()), s.width};
    const i64 longest = std::max(s.width, s.inner), pairs = s.rows * s.chosen;
    const i64 own = 8 * 16 * s.chosen + 4 * (pairs + s.experts + 1) + s.block * stride(s.width) + 8 * 64;
    const i64 bytes = (std::max(64 * longest, own) + std::max<i64>(80 * longest, 112 * 1024) + 512 * 1024 + 4095) / 4096 * 4096;
    std::barrier<> team(s.threads);
    Section sections[kSections] = {};
    Tuning tuning;
    std::vector<std::thread> threads;
    for (int t = 0; t < s.threads; t++) {
      threads.emplace_back([&, t] {
        std::vector<uint8_t> scratch(static_cast<size_t>(bytes) + 64);
        Run each = {};
        each.thread = t;
        each.threads = static_cast<int>(s.threads);
        each.team = &team;
        each.meet = meet;
        each.sections = sections;
        each.scratch = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64;
        each.scratch_bytes = bytes;
        each.dims = &s.rows;
        each.tuning = &tuning;
        reinterpret_cast<Kernel>(const_cast<void*>(find_entry(variant, "moe")))(args, each);
      });
    }
    for (auto& thread : threads) thread.join();
  }

  // Ids by their definition.
  std::vector<int32_t> chosen(i64 row) const {
    std::vector<int32_t> ids(static_cast<size_t>(s.experts));
    for (size_t e = 0; e < ids.size(); e++) ids[e] = static_cast<int32_t>(e);
    const float* own = &logits[static_cast<size_t>(row * s.experts)];
    std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return own[a] > own[b]; });
    ids.resize(static_cast<size_t>(s.chosen));
    std::sort(ids.begin(), ids.end());
    return ids;
  }

  std::vector<float> product(int which, i64 expert, const uint8_t* row) const {
    const i64 n = columns(which), panels = (n + 31) / 32, panel = s.quantized ? k(which) / 32 * 1088 : k(which) * 128;
    std::vector<float> y(static_cast<size_t>(panels * 32));
    oracle_linear(layout(), weights[which].data() + expert * panels * panel, k(which), panels, row, 1, y.data(), panels * 32, fused);
    y.resize(static_cast<size_t>(n));
    for (i64 i = 0; s.biased && i < n; i++) y[static_cast<size_t>(i)] += bias[which][static_cast<size_t>(expert * n + i)];
    return y;
  }

  void check(const std::string& name) const {
    std::vector<char> seen(static_cast<size_t>(s.experts));
    for (i64 r = 0; r < s.rows; r++) {
      const std::vector<int32_t> ids = chosen(r);
      std::vector<float> sum(static_cast<size_t>(s.width)), share(ids.size());
      if (s.rows > s.share) {
        expect(std::equal(ids.begin(), ids.end(), &routes[static_cast<size_t>(r * s.chosen)]), name + " ids");
        std::memcpy(share.data(), &routes[static_cast<size_t>((s.rows + r) * s.chosen)], share.size() * 4);
      }
      for (size_t i = 0; i < ids.size(); i++) {
        seen[static_cast<size_t>(ids[i])] = 1;
        const uint8_t* row = acts.data() + r * stride(s.width);
        std::vector<float> both = product(0, ids[i], row), up = product(1, ids[i], row);
        for (size_t c = 0; c < both.size(); c++) both[c] += up[c];
        const std::vector<float> y = product(2, ids[i], ready(both, s.inner).data());
        for (size_t c = 0; c < sum.size(); c++) {
          const float term = y[c] * share[i];
          sum[c] += term;
        }
      }
      if (s.rows <= s.share) continue;  // weights are known only where routes are left in memory
      expect(std::memcmp(sum.data(), &out[static_cast<size_t>(r * s.width)], sum.size() * 4) == 0, name + " sum");
    }
    expect(active == std::count(seen.begin(), seen.end(), 1), name + " active");
  }
};

void test(const Variant& variant, Shape s) {
  World world(s, variant.name != std::string("portable"));
  const std::string name = std::string(variant.name) + " rows " + std::to_string(s.rows) + " experts " +
                           std::to_string(s.experts) + " width " + std::to_string(s.width) + " block " + std::to_string(s.block);
  world.run(variant);
  world.check(name);
  const std::vector<float> first = world.out;
  for (const i64 threads : {1, 2, 3}) {
    world.s.threads = threads, world.s.share = threads == 2 ? 0 : 16, world.s.block = threads * 16;
    std::fill(world.out.begin(), world.out.end(), 0.0f);
    world.run(variant);
    const bool same = first.empty() || std::memcmp(first.data(), world.out.data(), first.size() * 4) == 0;
    expect(same, name + " threads change bits");
  }
}
}  // namespace

int main() {
  for (const Variant* variant : built_variants()) {
    if (!processor_runs(variant->name)) continue;
    for (const bool quantized : {true, false}) {
      const i64 width = quantized ? 96 : 41, inner = quantized ? 64 : 70;
      for (const i64 rows : {0, 1, 2, 15, 40}) {
        test(*variant, {rows, 5, 2, width, inner, 16, 0, 2, quantized, rows % 2 == 1});
        test(*variant, {rows, 3, 3, width, inner, 33, 0, 1, quantized, rows % 2 == 0});
      }
      test(*variant, {530, 4, 1, width, inner, 96, 0, 3, quantized, true});  // two runs of rows in the second section
      test(*variant, {7, 130, 64, 32, 32, 16, 0, 2, quantized, false});
    }
    std::printf("%s tested\n", variant->name);
  }
  std::printf("moe: %d failures\n", failures);
  return failures != 0;
}
