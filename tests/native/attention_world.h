// A small world around the attention node for native tests: sequences with random q, K and V, shuffled pages, steps cut as
// the caller likes, a team of threads. Knows nothing of what attention computes; every value can be asked for.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "isa.h"

namespace world {

using namespace octavo;

inline const Variant* variant;  // under test

template <class T>
T entry(const char* name) {
  const void* found = find_entry(*variant, name);
  if (!found) {
    std::printf("FAILED: %s lacks %s\n", variant->name, name);
    std::exit(1);
  }
  return reinterpret_cast<T>(const_cast<void*>(found));
}

inline i64 bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

// Rounds to bf16 (nearest even) and back; finite values only.
inline float to_bf16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  u = (u + 0x7fff + ((u >> 16) & 1)) & 0xffff0000u;
  std::memcpy(&f, &u, 4);
  return f;
}

// The same to half precision: in units of the last of its 11 bits, 2^-24 at least.
inline float to_half(float f) {
  int exponent;
  std::frexp(f, &exponent);
  const float unit = std::ldexp(1.0f, std::max(exponent - 11, -24));
  return std::nearbyintf(f / unit) * unit;
}

struct Team {
  int threads;
  std::atomic<int> waiting{0}, generation{0};
  explicit Team(int n) : threads(n) {}
  static void meet(const Run& run, int, i64) {
    Team& t = *static_cast<Team*>(run.team);
    const int g = t.generation.load();
    if (t.waiting.fetch_add(1) + 1 == t.threads) {
      t.waiting.store(0);
      t.generation.store(g + 1);
    } else {
      while (t.generation.load() == g) std::this_thread::yield();
    }
  }
  void run(const std::function<void(int)>& f) {
    std::vector<std::thread> others;
    for (int i = 1; i < threads; i++) others.emplace_back(f, i);
    f(0);
    for (auto& t : others) t.join();
  }
};

struct Aligned {
  uint8_t* data;
  explicit Aligned(size_t bytes) : data(static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64))) {}
  ~Aligned() { std::free(data); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
};

struct Shape {
  int heads, kv_heads, head_dim, dtype;  // dtype as in KvGroup
  int group() const { return heads / kv_heads; }
};

struct Part {  // rows [from, from + count) of a sequence
  int sequence, from, count;
};

class World {
 public:
  // visible(sequence, position) -> {lo, hi}
  using Visible = std::function<std::pair<int, int>(int, int)>;
  Shape shape;
  std::vector<int> lengths;
  Visible visible;
  float scale, cap = 0;
  std::vector<float> sinks;                 // [heads] or empty
  std::vector<std::vector<float>> q, k, v;  // per sequence [position][heads or kv_heads][head_dim]

  World(Shape s, std::vector<int> lens, Visible see, uint64_t seed, float spread = 1.0f)
      : shape(s), lengths(std::move(lens)), visible(std::move(see)), scale(1.0f / std::sqrt(float(s.head_dim))) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal(0, 1);
    for (int n : lengths) {
      const auto fill = [&](int h, float by) {
        std::vector<float> x(size_t(n) * h * s.head_dim);
        for (float& f : x) f = by * normal(random);
        return x;
      };
      q.push_back(fill(s.heads, spread));
      k.push_back(fill(s.kv_heads, 1));
      v.push_back(fill(s.kv_heads, 1));
    }
    pages_of(random);
  }

  // Everything a sequence has is forgotten: owned pages zero (as when they change owner), all others not a number.
  void clear() {
    std::memset(pool_->data, 0xff, group_.pages * group_.page_bytes);
    for (int32_t p : page_)
      if (p >= 0) std::memset(pool_->data + p * group_.page_bytes, 0, group_.page_bytes);
  }

  // Writes K and V of some rows with tile.kv_write.
  void write(const std::vector<Part>& parts) {
    Flat flat(*this, parts);
    for (int which = 0; which < 2; which++) {
      const int columns = shape.kv_heads * shape.head_dim;
      std::vector<float> x;
      for (const Part& p : parts) {
        const auto& from = which ? v[p.sequence] : k[p.sequence];
        x.insert(x.end(), from.begin() + size_t(p.from) * columns, from.begin() + size_t(p.from + p.count) * columns);
      }
      const i64 args[] = {0, layer, which};
      Run run = flat.run(*this, 0, 1);
      // one tile a head, as the column units of a linear
      for (int h = 0; h < shape.kv_heads; h++) {
        Tile tile{x.data() + h * shape.head_dim, columns, flat.rows, 0, shape.head_dim, i64{h} * shape.head_dim};
        entry<TileFn>("tile.kv_write")(args, run, tile);
      }
    }
  }

  // Output of the attention node for the rows of one step: [rows][heads * head_dim].
  std::vector<float> attend(const std::vector<Part>& parts, int threads, i64 workspace_bytes, i64 scratch_bytes = 1 << 18) {
    Flat flat(*this, parts);
    const i64 columns = i64{shape.heads} * shape.head_dim;
    std::vector<float> in;
    for (const Part& p : parts) {
      const auto& from = q[p.sequence];
      in.insert(in.end(), from.begin() + p.from * columns, from.begin() + (p.from + p.count) * columns);
    }
    std::vector<float> out(flat.rows * columns, -1e30f);
    Aligned workspace(workspace_bytes);
    const i64 args[] = {0, i64(in.data()), columns, 0, layer, shape.heads, bits(scale), bits(cap),
                        sinks.empty() ? 0 : i64(sinks.data()), i64(workspace.data), workspace_bytes,
                        1, i64(&store), 2, i64(out.data()), columns};
    Team team(threads);
    std::vector<std::unique_ptr<Aligned>> scratch;
    for (int t = 0; t < threads; t++) scratch.push_back(std::make_unique<Aligned>(scratch_bytes));
    const auto kernel = entry<Kernel>("attention");
    team.run([&](int t) {
      Run run = flat.run(*this, t, threads);
      run.team = &team;
      run.meet = &Team::meet;
      run.scratch = scratch[t]->data;
      run.scratch_bytes = scratch_bytes;
      kernel(args, run);
    });
    return out;
  }

  static constexpr int layer = 1;  // of two

 private:
  // A step's arrays. Group 1 of 2 in the step's terms, so that a forgotten group index shows.
  struct Flat {
    std::vector<int32_t> slot, position, lo, hi, seq_slot, seq_row;
    i64 header[64] = {}, rows, dims[1];
    Section sections[2] = {};
    Step step = {};
    Slots slots = {};
    Flat(World& w, const std::vector<Part>& parts) {
      for (const Part& p : parts) {
        seq_slot.push_back(p.sequence);
        seq_row.push_back(int32_t(slot.size()));
        for (int i = p.from; i < p.from + p.count; i++) {
          slot.push_back(p.sequence);
          position.push_back(i);
        }
      }
      rows = i64(slot.size());
      seq_row.push_back(int32_t(rows));
      lo.assign(2 * rows, 0);
      hi.assign(2 * rows, 0);
      for (i64 r = 0; r < rows; r++) std::tie(lo[rows + r], hi[rows + r]) = w.visible(slot[r], position[r]);
      header[H_rows] = dims[0] = rows;
      header[H_seqs] = i64(parts.size());
      step.G = slots.G = 2;
      step.T = rows;
      step.header = header;
      step.row_slot = slot.data();
      step.row_pos = position.data();
      step.row_lo = lo.data();
      step.row_hi = hi.data();
      step.seq_slot = seq_slot.data();
      step.seq_row = seq_row.data();
      slots.P = w.slot_pages_;
      slots.page = w.page_.data();
    }
    Run run(World& w, int thread, int threads) {
      Run r = {};
      r.thread = thread;
      r.threads = threads;
      r.dims = dims;
      r.step = &step;
      r.slots = &slots;
      r.groups = &w.group_;
      r.sections = sections;
      return r;
    }
  };

  static void store(const i64* args, const Run&, Tile& tile) {
    for (i64 r = 0; r < tile.rows; r++)
      std::memcpy(reinterpret_cast<float*>(args[0]) + (tile.row0 + r) * args[1] + tile.col0, tile.data + r * tile.ld,
                  tile.cols * 4);
  }

  // Pages in random order, spare ones among them; a page that no position of the sequence needs is -1.
  void pages_of(std::mt19937_64& random) {
    i64 needed = 0, longest = 0;
    for (int n : lengths) {
      needed += (n + kPage - 1) / kPage;
      longest = std::max<i64>(longest, (n + kPage - 1) / kPage);
    }
    group_ = {};
    group_.pages = needed + 3;
    group_.head_bytes = kv_head_bytes(shape.head_dim, shape.dtype);
    group_.layer_bytes = group_.head_bytes * shape.kv_heads;
    group_.page_bytes = group_.layer_bytes * 2;
    group_.layers = 2;
    group_.kv_heads = shape.kv_heads;
    group_.head_dim = shape.head_dim;
    group_.dtype = shape.dtype;
    group_.index = 1;
    std::vector<int32_t> order(group_.pages);
    for (size_t i = 0; i < order.size(); i++) order[i] = int32_t(i);
    std::shuffle(order.begin(), order.end(), random);
    slot_pages_ = longest + 1;
    page_.assign(lengths.size() * 2 * slot_pages_, -1);
    size_t next = 0;
    for (size_t s = 0; s < lengths.size(); s++)
      for (int p = 0; p < (lengths[s] + kPage - 1) / kPage; p++) page_[(s * 2 + 1) * slot_pages_ + p] = order[next++];
    pool_ = std::make_unique<Aligned>(group_.pages * group_.page_bytes);
    group_.pool = pool_->data;
    clear();
  }

  KvGroup group_;
  i64 slot_pages_ = 0;
  std::vector<int32_t> page_;
  std::unique_ptr<Aligned> pool_;
};

}  // namespace world
