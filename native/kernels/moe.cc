// Kernel "moe": rows -> the experts that their logits choose -> their products -> the weighted sum in the order of
// experts. Arguments: see kernel.h.
//
// A *pair* is a row and one of its experts. Pairs are put in the order of experts, rows ascending; each thread does that for
// itself from the routes. Then two sections: the first products of blocks of pairs, through the ops that join them into the
// rows of `inner`; and the second products, whose units are columns of the result, so that one thread adds all experts of an
// element, ascending. An expert's rows go through its panels together (never one product a row), gathered in the scratch
// where they are not adjacent. Bits of a row depend neither on what stands beside it nor on who does what: a format promises
// that of products, and the rest is done element by element.
//
// Work of the first section is measured in rows: a unit of a block is worth as many as it has, at least kStreamRows, what a
// panel costs that comes from memory. Threads divide these sums, and a unit belongs to whoever has its first row.
#include "../simd/simd.h"
#include "inlined.h"

OCTAVO_BEGIN
namespace {

constexpr i64 kMostChosen = 64;     // experts of a row (ops/moe.py)
constexpr i64 kStreamRows = 8;      // 0.56 bytes a weight at 24 GB/s take a thread as long as 8 rows at 0.7 TOP/s
constexpr i64 kTileFloats = 16384;  // as in linear.cc
constexpr i64 kSumFloats = 65536;   // 256 KiB: 512 rows x 128 columns, beside their activations in an L2 of 1 MiB
constexpr i64 kSumRows = 512;

struct Matrix {
  const uint8_t* data;
  const Format* format;
  const float* bias;  // [experts][columns] or nullptr
};
inline Matrix take_matrix(const i64*& at) {
  const Matrix found = {reinterpret_cast<const uint8_t*>(at[0]), reinterpret_cast<const Format*>(at[1]),
                        reinterpret_cast<const float*>(at[2])};
  at += 3;
  return found;
}

// Products of all experts on rows of K activations.
struct Stage {
  const uint8_t* acts;
  i64 span, K, columns, count;  // columns of a weight; weights: 1, or 2 that an op joins
  Matrix weight[2];
  Ops ops;
  i64 row_bytes() const { return span ? act_row_bytes(K, span) : K * 4; }
  i64 panels() const { return (columns + 31) / 32; }
  const uint8_t* panel(const Matrix& m, i64 expert, i64 first) const {
    return m.data + (expert * panels() + first) * m.format->panel_bytes(K);
  }
};
inline Stage take_stage(const i64*& at) {
  Stage stage = {reinterpret_cast<const uint8_t*>(at[0]), at[1], at[2], at[3], at[4], {}, {}};
  at += 5;
  for (i64 i = 0; i < stage.count; i++) stage.weight[i] = take_matrix(at);
  stage.ops = take_ops(at);
  return stage;
}

struct Router {
  const float* logits;
  i64 ld, experts, chosen;
  bool over_all;
};

struct Moe {
  i64 rows, block;
  Router router;
  i64 share_rows;
  int32_t* ids;    // [rows][chosen] where rows > share_rows
  float* weights;  // the same
  i64* active;
  Stage in, out;
  i64 pairs() const { return rows * router.chosen; }
};
Moe take_moe(const i64* args, const Run& run) {
  Moe m = {run.dims[args[0]], args[8], {reinterpret_cast<const float*>(args[1]), args[2], args[3], args[4], args[5] != 0},
           args[6], reinterpret_cast<int32_t*>(args[7]), nullptr, reinterpret_cast<i64*>(args[9]), {}, {}};
  m.weights = reinterpret_cast<float*>(m.ids + m.pairs());
  const i64* at = args + 10;
  m.in = take_stage(at);
  m.out = take_stage(at);
  return m;
}

// Integers in the order of floats; 0 and -0 are one, NaNs stand at the ends.
inline int32_t order_of(float x) {
  union {
    float f;
    int32_t i;
  } bits = {x + 0.0f};
  return bits.i ^ (bits.i >> 31 & INT32_MAX);
}

// The greatest logits of a row, of equal ones that of the lower id; ids ascending. Weights: a softmax over these, or over all.
void route(const Router& router, i64 row, int32_t* ids, float* weights) {
  using namespace simd;
  const float* logits = router.logits + row * router.ld;
  int32_t keys[kMostChosen];
  i64 n = 0;
  for (i64 e = 0; e < router.experts; e++) {
    const int32_t key = order_of(logits[e]);
    if (n == router.chosen && key <= keys[n - 1]) continue;
    i64 at = n < router.chosen ? n++ : n - 1;
    for (; at > 0 && keys[at - 1] < key; at--) keys[at] = keys[at - 1], ids[at] = ids[at - 1];
    keys[at] = key;
    ids[at] = static_cast<int32_t>(e);
  }
  const F top = set1(logits[ids[0]]);
  for (i64 i = 1; i < n; i++) {
    const int32_t id = ids[i];
    i64 at = i;
    for (; at > 0 && ids[at - 1] > id; at--) ids[at] = ids[at - 1];
    ids[at] = id;
  }
  alignas(64) float share[kMostChosen];
  for (i64 i = 0; i < kMostChosen; i++) share[i] = i < n ? logits[ids[i]] : -__builtin_inff();
  float total = 0;
  for (i64 i = 0; i < n; i += 16) store(share + i, exp(sub(load(share + i), top)));
  if (router.over_all) {
    F sums = zero();
    for (i64 e = 0; e < router.experts; e += 16) {
      const F each = exp(sub(load_n(logits + e, router.experts - e), top));
      sums = add(sums, select(mask_n(router.experts - e), each, zero()));
    }
    total = reduce_add(sums);
  } else {
    for (i64 i = 0; i < n; i++) total += share[i];
  }
  for (i64 i = 0; i < n; i += 16) store_n(weights + i, div(load(share + i), set1(total)), n - i);
}

// Pairs (row * chosen + place) in the order of experts; those of expert e are [begin[e], begin[e + 1]).
struct Groups {
  const int32_t* ids;
  const float* weights;
  int32_t* begin;  // [experts + 1]
  int32_t* pair;   // [pairs]
  i64 count(i64 e) const { return begin[e + 1] - begin[e]; }
};

// What is left of a thread's scratch.
struct Room {
  uint8_t* at;
  i64 bytes;
  template <class T>
  T* take(i64 count) {
    const i64 size = whole(count * static_cast<i64>(sizeof(T)), 64);
    if (size > bytes) __builtin_trap();  // the plan gives room (ops/moe.py, scratch)
    T* found = reinterpret_cast<T*>(at);
    at += size;
    bytes -= size;
    return found;
  }
};

// Routes every row, here or together with the other threads, and puts the pairs in order.
Groups group(const Moe& m, const Run& run, Room& room) {
  Groups g = {m.ids, m.weights, nullptr, nullptr};
  if (m.rows > least(m.share_rows, run.tuning->share_rows)) {
    for (Share rows; take(run, 0, m.rows, rows);) {
      for (i64 r = rows.begin; r < rows.end; r++) route(m.router, r, m.ids + r * m.router.chosen, m.weights + r * m.router.chosen);
    }
    run.meet(run, 0, m.rows);
  } else {
    int32_t* ids = room.take<int32_t>(m.pairs());
    float* weights = room.take<float>(m.pairs());
    for (i64 r = 0; r < m.rows; r++) route(m.router, r, ids + r * m.router.chosen, weights + r * m.router.chosen);
    g.ids = ids, g.weights = weights;
  }
  g.begin = room.take<int32_t>(m.router.experts + 1);
  g.pair = room.take<int32_t>(m.pairs());
  for (i64 e = 0; e <= m.router.experts; e++) g.begin[e] = 0;
  for (i64 i = 0; i < m.pairs(); i++) g.begin[g.ids[i] + 1]++;
  i64 active = 0;
  for (i64 e = 0; e < m.router.experts; e++) active += g.begin[e + 1] > 0, g.begin[e + 1] += g.begin[e];
  for (i64 i = 0; i < m.pairs(); i++) g.pair[g.begin[g.ids[i]]++] = static_cast<int32_t>(i);
  for (i64 e = m.router.experts; e > 0; e--) g.begin[e] = g.begin[e - 1];
  g.begin[0] = 0;
  __atomic_store_n(m.active, active, __ATOMIC_RELAXED);  // each thread the same
  return g;
}

// `words` words of 32 bits.
inline void copy(const uint8_t* from, uint8_t* to, i64 words) {
  for (i64 i = 0; i < words; i += 16, from += 64, to += 64) {
    if (words - i >= 16) {
      simd::storei(to, simd::loadi(from));
    } else {
      simd::store_n(reinterpret_cast<float*>(to), simd::load_n(reinterpret_cast<const float*>(from), words - i), words - i);
    }
  }
}

// The activations of pairs [first, first + n) of the order: where they are, if their rows are adjacent, else gathered.
const uint8_t* gathered(const Moe& m, const Groups& g, i64 first, i64 n, uint8_t* to) {
  const i64 chosen = m.router.chosen, bytes = m.in.row_bytes(), row = g.pair[first] / chosen;
  if (g.pair[first + n - 1] / chosen - row == n - 1) return m.in.acts + row * bytes;
  for (i64 i = 0; i < n; i++) {
    const uint8_t* from = m.in.acts + g.pair[first + i] / chosen * bytes;
    copy(from, to + i * bytes, bytes / 4);
  }
  return to;
}

// data[r][c] += bias[c].
void add_bias(float* data, i64 ld, i64 rows, i64 cols, const float* bias) {
  using namespace simd;
  for (i64 r = 0; r < rows; r++, data += ld) {
    for (i64 c = 0; c < cols; c += 16) store_n(data + c, add(load_n(data + c, cols - c), load_n(bias + c, cols - c)), cols - c);
  }
}

// Panels [p0, p1) of every weight of a stage for `rows` rows, side by side in `data`; a padded column is 0.
i64 products(const Stage& stage, const Run& run, i64 expert, i64 p0, i64 p1, const uint8_t* acts, i64 rows, float* data,
             uint8_t* scratch) {
  const i64 padded = (p1 - p0) * 32, ld = padded * stage.count, cols = least(padded, stage.columns - p0 * 32);
  for (i64 i = 0; i < stage.count; i++) {
    const Matrix& w = stage.weight[i];
    w.format->linear(stage.panel(w, expert, p0), stage.K, p1 - p0, acts, rows, data + i * padded, ld,
                     way_of(run, *w.format, scratch));
    if (w.bias) add_bias(data + i * padded, ld, rows, cols, w.bias + expert * stage.columns + p0 * 32);
  }
  return ld;
}

i64 format_scratch(const Stage& stage) {
  i64 found = 0;
  for (i64 i = 0; i < stage.count; i++) found = most(found, whole(stage.weight[i].format->scratch_bytes(stage.K), 64));
  return found;
}

// Panels [p0, p1) of the first products of pairs [first, first + n) of an expert.
struct Piece {
  i64 expert, first, n, p0, p1;
};
// `unit` panels go through the ops together at least: p0 is a multiple of it. Where all pairs do not fit, as many as do.
void run_piece(const Stage& stage, const Run& run, const Piece& piece, i64 unit, const uint8_t* acts, Room room) {
  uint8_t* scratch = room.take<uint8_t>(format_scratch(stage));
  const i64 width = unit * 32 * stage.count, floats = room.bytes / 4, rows = least(piece.n, floats / width);
  if (rows < 1) __builtin_trap();  // the plan gives room for a row of every unit
  const i64 step = most(1, least(kTileFloats, floats) / (rows * width)) * unit;
  float* data = reinterpret_cast<float*>(room.at);
  for (i64 p = piece.p0; p < piece.p1; p += step) {
    const i64 end = least(piece.p1, p + step), cols = least((end - p) * 32, stage.columns - p * 32);
    for (i64 r = 0; r < piece.n; r += rows) {
      const i64 n = least(rows, piece.n - r);
      const i64 ld = products(stage, run, piece.expert, p, end, acts + r * stage.row_bytes(), n, data, scratch);
      Tile tile = {data, ld, n, piece.first + r, stage.count == 1 ? cols : ld, p * 32};
      each_op(stage.ops, [&](i64 function, const i64* args) {
        reinterpret_cast<TileFn>(function)(args, run, tile);
        tile.cols = least(tile.cols, cols);  // joined: what pads the last panel goes
      });
    }
  }
}

// The first section: blocks of pairs x panels, by the rows that they are worth; all of them together.
i64 first_products(const Moe& m, const Groups& g, const Run& run, Room room) {
  uint8_t* rows_here = room.take<uint8_t>(m.block * m.in.row_bytes());
  // A unit is the panels whose columns share a scale where the second stage reads them.
  const i64 panels = m.in.panels(), unit = most(1, m.out.span / 32), units = (panels + unit - 1) / unit;
  const auto each_block = [&](const auto& body) {  // body(expert, first pair, pairs, worth of a unit, worth before)
    i64 before = 0;
    for (i64 e = 0; e < m.router.experts; e++) {
      const i64 n = g.count(e), blocks = (n + m.block - 1) / m.block;
      for (i64 b = 0; b < blocks; b++) {
        const i64 first = n * b / blocks, rows = n * (b + 1) / blocks - first, worth = most(kStreamRows, rows);
        body(e, g.begin[e] + first, rows, worth, before);
        before += worth * units;
      }
    }
    return before;
  };
  const i64 all = each_block([](i64, i64, i64, i64, i64) {});
  for (Share share; take(run, 1, all, share);) {
    each_block([&](i64 e, i64 first, i64 rows, i64 worth, i64 before) {
      const i64 u0 = share.begin <= before ? 0 : (share.begin - before + worth - 1) / worth;
      const i64 u1 = share.end <= before ? 0 : least(units, (share.end - before + worth - 1) / worth);
      if (u0 >= u1) return;
      const Piece piece = {e, first, rows, u0 * unit, least(panels, u1 * unit)};
      run_piece(m.in, run, piece, unit, gathered(m, g, first, rows, rows_here), room);
    });
  }
  return all;
}

// sum[c] += weight * x[c], rounded twice.
inline void add_weighted(float* sum, const float* x, float weight, i64 cols) {
  using namespace simd;
  const F by = set1(weight);
  for (i64 c = 0; c < cols; c += 16) store(sum + c, add(load(sum + c), mul(load(x + c), by)));
}

// Columns of panels [p0, p1) of the result of rows [r0, r1): every expert's share is added, then the epilogue.
void sum_experts(const Moe& m, const Groups& g, const Run& run, const Piece& rows, Room room) {
  const Stage& stage = m.out;
  uint8_t* scratch = room.take<uint8_t>(format_scratch(stage));
  const i64 padded = (rows.p1 - rows.p0) * 32, chosen = m.router.chosen, last = rows.first + rows.n;
  float* sums = room.take<float>(rows.n * padded);
  float* data = room.take<float>(least(m.block, rows.n) * padded);
  for (i64 i = 0; i < rows.n * padded; i += 16) simd::store(sums + i, simd::zero());
  for (i64 e = 0; e < m.router.experts; e++) {
    i64 at = g.begin[e], end = g.begin[e + 1];
    while (at < end && g.pair[at] / chosen < rows.first) at++;
    while (at < end && g.pair[end - 1] / chosen >= last) end--;
    for (i64 n; at < end; at += n) {
      n = least(end - at, m.block);
      products(stage, run, e, rows.p0, rows.p1, stage.acts + at * stage.row_bytes(), n, data, scratch);
      for (i64 i = 0; i < n; i++) {
        const i64 pair = g.pair[at + i];
        add_weighted(sums + (pair / chosen - rows.first) * padded, data + i * padded, g.weights[pair], padded);
      }
    }
  }
  Tile tile = {sums, padded, rows.n, rows.first, least(padded, stage.columns - rows.p0 * 32), rows.p0 * 32};
  run_ops(stage.ops, run, tile);
}

// The second section: runs of rows x panels; adjacent panels go together as far as their sums have room.
void second_products(const Moe& m, const Groups& g, const Run& run, const Room& room) {
  const i64 panels = m.out.panels(), parts = (m.rows + kSumRows - 1) / kSumRows;
  for (Share share; take(run, 2, parts * panels, share);) {
    for (i64 u = share.begin; u < share.end;) {
      const i64 part = u / panels, first = m.rows * part / parts, n = m.rows * (part + 1) / parts - first, p0 = u % panels;
      const i64 step = most(1, kSumFloats / (32 * n));
      const i64 p1 = least(least(p0 + step, panels), p0 + share.end - u);
      sum_experts(m, g, run, {0, first, n, p0, p1}, room);
      u += p1 - p0;
    }
  }
}

void moe(const i64* args, const Run& run) {
  const Moe m = take_moe(args, run);
  if (m.rows <= 0) {
    __atomic_store_n(m.active, 0, __ATOMIC_RELAXED);
    return;
  }
  Room room = {run.scratch, run.scratch_bytes};
  const Groups g = group(m, run, room);
  const i64 units = first_products(m, g, run, room);
  if (m.out.count == 0) return;
  run.meet(run, 1, units);
  second_products(m, g, run, room);
}

}  // namespace

OCTAVO_ENTRIES(moe, {"moe", OCTAVO_FN(moe)})

OCTAVO_END
