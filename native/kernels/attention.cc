// Paged attention: who computes which rows, heads and splits. The arithmetic is attention_split.h (one split) and
// attention_merge.h (splits to rows). Knows nothing of models: windows, causality and cross attention are row_lo and row_hi.
//
// An item is a block of adjacent rows of one sequence (all query heads of one KV head): 24 queries at most, so that a page of
// keys is read from L1 for all of them and their scores (24 KiB) stay in L2 at worst. Items are taken dynamically, longest
// first. When there are fewer than four items a thread and some context is longer than a split, (item, split) is shared
// instead, and after a barrier each item's partials are merged in the same order by the same code: equal bits.
//
// Scratch of a thread: the list of blocks and buffer_bytes(); with little of it blocks get fewer rows, so that one row's
// (heads of a KV head) * (12 * head_dim + 1056) bytes and 20 bytes a block are enough. Without room for partials in the
// workspace items are not split.
//
// Measured on 2 threads of a Zen 5 (noisy, best of several runs), one layer of 9 heads on 3 KV heads of 64, bf16 pages beyond
// L3: decode 1 @4096 70 us (45 GB/s; a loop that only reads the same pages takes 50 to 60), 32 @160 90 us (43 GB/s; the
// reading loop 75 to 85), prefill of 4,096 at 64 % of the bf16 peak (the two products alone: 78 %), of 512 at 53 % (masked
// keys of visited tiles not counted). An item that is taken early, so that it is prefetched by the thread that reads it, is
// 20 to 25 % of decode. Tried and dropped: prefetching into L2 only (0 to +10 %), keys and values of the next item while the
// values of this one are summed (+25 %), both evenly during the whole split (+5 %), values in turn from four pages (+2 %),
// pages of a layer side by side instead of layers of a page (no difference).
#include "attention_split.h"

OCTAVO_BEGIN
namespace {

constexpr int kBlockQueries = 24, kBlockRows = 16;

struct Block {
  int32_t row0, rows, slot;
  int32_t lo, hi;  // visible keys of all its rows together
  int first_split() const { return lo / kSplit; }
  int splits() const { return lo < hi ? (hi + kSplit - 1) / kSplit - lo / kSplit : 0; }
};

// The arguments of the node, read once, and what follows from them.
struct Work {
  const Run& run;
  const KvGroup& group;
  const float* q;
  i64 q_ld, layer, heads_per_kv;
  float scale, cap;
  const float* sinks;
  uint8_t* workspace;
  i64 workspace_bytes, epilogues;
  const i64* epilogue;
  int blocks, block_rows, most_rows;  // most_rows: of a block of this step
  bool matrix;
  bool heads_inner;  // one block a sequence: all heads of a page together; else one head's pages serve many blocks
  Block* block;

  i64 queries(const Block& b) const { return b.rows * heads_per_kv; }
  i64 items() const { return blocks * i64{group.kv_heads}; }
  const Block& block_of(i64 item) const { return block[heads_inner ? item / group.kv_heads : item % blocks]; }
  i64 head_of(i64 item) const { return heads_inner ? item % group.kv_heads : item / blocks; }
};

// This thread's memory for one item.
struct Buffers {
  float *q, *s, *q_scale, *p_scale;
  int32_t *lo, *hi;
  Partial whole, part;
};

static constexpr i64 lines(i64 bytes) { return (bytes + 63) / 64 * 64; }

static i64 buffer_bytes(i64 queries, i64 head_dim) {
  return lines(queries * head_dim * 4) * 3 + queries * kSplit * 4 + lines(queries * 4) * 8;
}

static Buffers carve(uint8_t* p, i64 queries, i64 head_dim) {
  const auto take = [&p](i64 bytes) {
    uint8_t* at = p;
    p += lines(bytes);
    return at;
  };
  const auto floats = [&take](i64 n) { return reinterpret_cast<float*>(take(n * 4)); };
  Buffers b;
  b.q = floats(queries * head_dim);
  b.s = floats(queries * kSplit);
  b.q_scale = floats(queries);
  b.p_scale = floats(queries);
  b.lo = reinterpret_cast<int32_t*>(take(queries * 4));
  b.hi = reinterpret_cast<int32_t*>(take(queries * 4));
  b.whole = {floats(queries), floats(queries), floats(queries * head_dim)};
  b.part = {floats(queries), floats(queries), floats(queries * head_dim)};
  return b;
}

// Four classes an octave, longest first.
static inline int length_class(const Block& b) {
  const uint32_t tiles = b.lo < b.hi ? static_cast<uint32_t>((b.hi - b.lo) / kTile + 1) : 1;
  const int log = 31 - __builtin_clz(tiles);
  return 127 - (log * 4 + static_cast<int>((static_cast<uint64_t>(tiles) << 2 >> log) & 3));
}

template <class Call>
static void each_block(const Work& w, const Call& call) {
  const Step& step = *w.run.step;
  const int32_t *lo = step.row_lo + w.group.index * step.T, *hi = step.row_hi + w.group.index * step.T;
  for (i64 s = 0; s < step.header[H_seqs]; s++)
    for (int32_t row = step.seq_row[s]; row < step.seq_row[s + 1]; row += w.block_rows) {
      const int32_t left = step.seq_row[s + 1] - row;
      Block b{row, left < w.block_rows ? left : static_cast<int32_t>(w.block_rows), step.seq_slot[s], INT32_MAX, 0};
      for (int32_t r = row; r < row + b.rows; r++) {
        if (lo[r] >= hi[r]) continue;
        b.lo = lo[r] < b.lo ? lo[r] : b.lo;
        b.hi = hi[r] > b.hi ? hi[r] : b.hi;
      }
      call(b);
    }
}

// All blocks of the step, longest class first: a counting sort, the same on every thread. Returns the most splits of one.
static int list_blocks(Work& w) {
  int32_t at[128] = {};
  int most = 0;
  each_block(w, [&](const Block& b) {
    at[length_class(b)]++;
    most = b.splits() > most ? b.splits() : most;
    w.most_rows = b.rows > w.most_rows ? b.rows : w.most_rows;
  });
  int32_t sum = 0;
  for (int32_t& n : at) {
    const int32_t count = n;
    n = sum;
    sum += count;
  }
  w.blocks = sum;
  each_block(w, [&](const Block& b) { w.block[at[length_class(b)]++] = b; });
  w.heads_inner = w.blocks == w.run.step->header[H_seqs];
  return most;
}

// Sets a.page and its ranges for a split; false: nothing is visible. A page of a visited tile that no row sees may not
// exist: another one stands in, all of its keys are masked.
static bool find_pages(const Work& w, const Block& b, i64 head, int split, Split& a) {
  const Slots& slots = *w.run.slots;
  const int32_t* table = slots.page + (b.slot * slots.G + w.group.index) * slots.P + split * kPages;
  const int base = split * kSplit;
  const int lo = b.lo > base ? b.lo - base : 0, hi = b.hi - base < kSplit ? b.hi - base : kSplit;
  if (lo >= hi) return false;
  const uint8_t* const k = w.group.pool + w.layer * w.group.layer_bytes + head * w.group.head_bytes;
  const uint8_t* any = nullptr;
  a.first_seen = lo / kPage;
  a.last_seen = (hi + kPage - 1) / kPage;
  a.first = lo / kTile * 2;
  a.last = (hi + kTile - 1) / kTile * 2;
  for (int p = a.first; p < a.last; p++) {
    const bool exists = p >= a.first_seen && p < a.last_seen && table[p] >= 0;
    a.page[p] = exists ? k + table[p] * w.group.page_bytes : nullptr;
    if (exists) any = a.page[p];
  }
  for (int p = a.first; p < a.last; p++)
    if (!a.page[p]) a.page[p] = any;
  return any != nullptr;
}

static void ask_for(const Work& w, const Block& b, i64 head, int split, Split& a) {
  Split next;
  a.nexts = 0;
  if (!find_pages(w, b, head, split, next)) return;
  for (int p = next.first_seen; p < next.last_seen; p++) a.next[a.nexts++] = next.page[p];
}

// One query to codes of at most kQueryMost, and what a code is worth: NaN where q is not finite, 0 where a reciprocal would
// overflow.
static inline float quantize_query(const float* q, i64 head_dim, int16_t* out) {
  F most = zero(), broken = zero();
  for (i64 d = 0; d < head_dim; d += 16) {
    most = max(most, abs(load(q + d)));
    broken = add(broken, mul(load(q + d), zero()));
  }
  const float top = reduce_max(most);
  const F inverse = set1(top >= 1e-30f ? kQueryMost / top : 0.0f);
  for (i64 d = 0; d < head_dim; d += 16) store_i16(out + d, to_i(mul(load(q + d), inverse)));
  return (top >= 1e-30f ? top / kQueryMost : 0.0f) + reduce_add(broken);
}

// Rows of q in one piece: floats, bf16 where keys are dotted as such, int16 over int8 keys.
template <KeyKind KIND>
static void load_queries(const Work& w, const Block& b, i64 head, const Buffers& m) {
  const i64 columns = w.heads_per_kv * w.group.head_dim;
  float* const out = m.q;
  for (i64 r = 0; r < b.rows; r++) {
    const float* q = w.q + (b.row0 + r) * w.q_ld + head * columns;
    i64 c = 0;
    if constexpr (KIND == kInt8) {
      int16_t* to = reinterpret_cast<int16_t*>(out) + r * columns;
      for (i64 h = 0; h < w.heads_per_kv; h++, c += w.group.head_dim)
        m.q_scale[r * w.heads_per_kv + h] = quantize_query(q + c, w.group.head_dim, to + c);
    }
#if HAS_BF16_DOT
    if constexpr (KIND == kBf16Dot) {
      uint16_t* to = reinterpret_cast<uint16_t*>(out) + r * columns;
      for (; c + 32 <= columns; c += 32) storei(to + c, pack_bf16(load(q + c), load(q + c + 16)));
      if (c < columns) store_bf16(to + c, load(q + c));
    }
#endif
    if constexpr (KIND == kBf16Wide || kAlone<KIND>)
      for (; c < columns; c += 16) store(out + r * columns + c, load(q + c));
  }
}

template <KeyKind KIND>
static Split start(const Work& w, const Block& b, const Buffers& m) {
  Split a;
  a.nexts = a.first = a.last = 0;
  a.v_offset = KIND == kInt8 ? kPage * i64{w.group.head_dim} : w.group.head_bytes / 2;
  a.head_dim = w.group.head_dim;
  a.queries = static_cast<int>(w.queries(b));
  a.group = static_cast<int>(w.heads_per_kv);
  a.matrix = w.matrix;
  a.lo = m.lo;
  a.hi = m.hi;
  a.scale = w.cap > 0 ? kLog2e : w.scale * kLog2e;
  a.cap = w.cap;
  a.cap_in = w.cap > 0 ? 2.0f * w.scale * kLog2e / w.cap : 0.0f;
  a.q = m.q;
  a.s = m.s;
  a.q_scale = m.q_scale;
  a.p_scale = m.p_scale;
  return a;
}

// One split of an item into `out`; a.next is set already. False: no key of it is visible.
template <KeyKind KIND>
static bool one_split(const Work& w, const Block& b, i64 head, int split, const Buffers& m, Split& a, const Partial& out) {
  if (!find_pages(w, b, head, split, a)) return false;
  const Step& step = *w.run.step;
  const i64 row0 = w.group.index * step.T + b.row0;
  for (int r = 0; r < b.rows; r++) {
    m.lo[r] = step.row_lo[row0 + r] - split * kSplit;
    m.hi[r] = step.row_hi[row0 + r] - split * kSplit;
  }
  attend<KIND>(a, out);
  return true;
}

static void nothing(const Partial& p, i64 queries, i64 head_dim) {
  for (i64 q = 0; q < queries; q++) {
    p.m[q] = -__builtin_inff();
    p.l[q] = 0;
  }
  for (i64 i = 0; i < queries * head_dim; i += 16) store(p.o + i, zero());
}

static void emit(const Work& w, const Block& b, i64 head, const Partial& whole) {
  const i64 columns = w.heads_per_kv * w.group.head_dim;
  finish(whole, w.queries(b), w.heads_per_kv, w.group.head_dim, w.sinks ? w.sinks + head * w.heads_per_kv : nullptr);
  Tile tile{whole.o, columns, b.rows, b.row0, columns, head * columns};
  const i64* e = w.epilogue;
  for (i64 i = 0; i < w.epilogues; i++, e += 2 + e[1]) reinterpret_cast<TileFn>(e[0])(e + 2, w.run, tile);
}

// The items of a thread. With four or more for each thread it takes its next one while it is busy with another, so that
// what it asks for is what it will read: two threads that look at the same counter prefetch the same item.
struct Items {
  const Run& run;
  const i64 count;
  Share now, next;

  bool advance() {
    if (next.end < 0) return take_one(run, 0, count, now);
    if (run.taking) __atomic_fetch_add(&run.sections[0].done, 1, __ATOMIC_RELEASE);  // `now` is finished
    now = next;
    next = Share{};
    return now.begin < now.end;
  }
  i64 following() {
    if (count < 4 * run.threads) return next_unit(run, 0);
    take_one(run, 0, count, next);
    return next.begin;
  }
};

template <KeyKind KIND>
static void whole_items(const Work& w, const Buffers& m) {
  const i64 items = w.items();
  for (Items mine{w.run, items, {}, {}}; mine.advance();) {
    const i64 item = mine.now.begin;
    const Block& b = w.block_of(item);
    const i64 head = w.head_of(item), n = w.queries(b);
    load_queries<KIND>(w, b, head, m);
    Split a = start<KIND>(w, b, m);
    nothing(m.whole, n, w.group.head_dim);
    bool empty = true;
    for (int s = 0; s < b.splits(); s++) {
      if (s + 1 < b.splits()) {
        ask_for(w, b, head, b.first_split() + s + 1, a);
      } else {
        const i64 next = mine.following();
        a.nexts = 0;
        if (next < items) ask_for(w, w.block_of(next), w.head_of(next), w.block_of(next).first_split(), a);
      }
      const Partial& out = empty ? m.whole : m.part;
      if (!one_split<KIND>(w, b, head, b.first_split() + s, m, a, out)) continue;
      if (!empty) merge(m.whole, m.part, n, w.group.head_dim);
      empty = false;
    }
    emit(w, b, head, m.whole);
  }
}

// Partials in the workspace: [item][split], each m[queries] l[queries] o[queries][head_dim].
static i64 partial_bytes(const Work& w) {
  return w.most_rows * w.heads_per_kv * (w.group.head_dim + 2) * 4;
}

static Partial partial_at(const Work& w, i64 index) {
  float* p = reinterpret_cast<float*>(w.workspace + index * partial_bytes(w));
  const i64 n = w.most_rows * w.heads_per_kv;
  return {p + n * w.group.head_dim, p + n * w.group.head_dim + n, p};
}

template <KeyKind KIND>
static void split_items(const Work& w, const Buffers& m, int splits) {
  const i64 shares = w.items() * splits;
  for (Items mine{w.run, shares, {}, {}}; mine.advance();) {
    const i64 i = mine.now.begin;
    const i64 item = i / splits, head = w.head_of(item);
    const int s = static_cast<int>(i % splits);
    const Block& b = w.block_of(item);
    if (s >= b.splits()) continue;
    load_queries<KIND>(w, b, head, m);
    Split a = start<KIND>(w, b, m);
    const i64 next = mine.following();
    if (next < shares) {
      const Block& c = w.block_of(next / splits);
      const int t = static_cast<int>(next % splits);
      if (t < c.splits()) ask_for(w, c, w.head_of(next / splits), c.first_split() + t, a);
    }
    const Partial out = partial_at(w, i);
    if (!one_split<KIND>(w, b, head, b.first_split() + s, m, a, out)) nothing(out, w.queries(b), w.group.head_dim);
  }
  w.run.meet(w.run, 0, shares);
  for (Share one; take_one(w.run, 1, w.items(), one);) {
    const i64 item = one.begin;
    const Block& b = w.block_of(item);
    nothing(m.whole, w.queries(b), w.group.head_dim);
    for (int s = 0; s < b.splits(); s++)
      merge(m.whole, partial_at(w, item * splits + s), w.queries(b), w.group.head_dim);
    emit(w, b, w.head_of(item), m.whole);
  }
}

template <KeyKind KIND>
static void share(Work& w) {
  const i64 head_dim = w.group.head_dim, rows = w.run.step->header[H_rows], sequences = w.run.step->header[H_seqs];
  i64 list, queries;
  for (;; w.block_rows--) {
    list = lines((rows / w.block_rows + sequences) * static_cast<i64>(sizeof(Block)));
    queries = w.block_rows * w.heads_per_kv;
    if (list + buffer_bytes(queries, head_dim) <= w.run.scratch_bytes) break;
    if (w.block_rows == 1) __builtin_trap();  // a fault of the memory plan
  }
  w.block = reinterpret_cast<Block*>(w.run.scratch);
  const int splits = list_blocks(w);
  const Buffers m = carve(w.run.scratch + list, queries, head_dim);
  const bool few = w.items() < 4 * w.run.threads && splits > 1 && w.run.threads > 1;
  if (few && w.items() * splits * partial_bytes(w) <= w.workspace_bytes)
    split_items<KIND>(w, m, splits);
  else
    whole_items<KIND>(w, m);
}

static void attend_all(const i64* args, const Run& run, bool matrix, i64 block_queries, i64 block_most) {
  const KvGroup& group = run.groups[args[3]];
  const i64 per_kv = args[5] / group.kv_heads;
  const i64 rows = block_queries / per_kv;
  const int block_rows = static_cast<int>(rows < 1 ? 1 : rows > block_most ? block_most : rows);
  Work w{run, group, reinterpret_cast<const float*>(args[1]), args[2], args[4], per_kv,
         float_arg(args[6]), float_arg(args[7]), reinterpret_cast<const float*>(args[8]),
         reinterpret_cast<uint8_t*>(args[9]), args[10], args[11], args + 12, 0, block_rows, 0, matrix, false, nullptr};
  switch (group.dtype) {
    case kKvFloat: return share<kFloat>(w);
    case kKvHalf: return share<kHalf>(w);
    case kKvInt8: return share<kInt8>(w);
    default: return share<HAS_BF16_DOT ? kBf16Dot : kBf16Wide>(w);
  }
}

static void attention(const i64* args, const Run& run) {
  if (run.dims[args[0]] > 0) attend_all(args, run, false, kBlockQueries, kBlockRows);
}

// The same with products over bf16 pages on the matrix unit, where there is one.
static void attention_matrix(const i64* args, const Run& run) {
#if HAS_MATRIX_TILES
  if (run.dims[args[0]] > 0 && run.groups[args[3]].dtype == kKvBf16) {
    attend_all(args, run, true, kMatrixQueries, kMatrixQueries);  // two full tiles
    return MatrixShapes::release();
  }
#endif
  attention(args, run);
}

}  // namespace

OCTAVO_ENTRIES(attention, {"attention", OCTAVO_FN(attention)}, {"attention.matrix", OCTAVO_FN(attention_matrix)})
OCTAVO_END
