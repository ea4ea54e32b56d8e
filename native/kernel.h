// What a kernel sees. Included by every kernel of every ISA variant and by the tape; knows nothing of Python.
//
// A kernel is one node of a Program. It is called on every thread of the team at the same time, does its share, and
// returns; the tape puts a barrier after it. It takes its units of work through take() or take_one() alone, in at most
// kSections sections with a meet() after each but the last: threads that are late for a node find its units taken by others, or never enter it.
// So a kernel never waits for a thread by its number, and no bit may depend on who does a unit.
// Arguments are int64: immediates, addresses (already resolved and checked against their buffers at load) or indices into
// run.dims. Floats travel as the bits of a float in the low 32 bits (see float_arg). Sub-operations (prologues, epilogues)
// are inlined as {function address, number of arguments, arguments...}.
//
// Variant objects may include only <cstdint>, <cstddef> and intrinsics (no weak symbols, no libc calls, no std::).
#pragma once
#include "layout.h"

namespace octavo {

using i64 = int64_t;

static inline float float_arg(i64 bits) {
  union {
    uint32_t u;
    float f;
  } x;
  x.u = static_cast<uint32_t>(bits);
  return x.f;
}

// A state group of kind `paged`. Page p starts at pool + p * page_bytes and holds 16 tokens of every layer of the group:
// [layer][kv head]{K, V}. With 16 = kPage tokens:
//   bf16 (layout id kv.bf16.t16.1):  K [head_dim/2][16 tokens][2], V [8 token pairs][head_dim][2]   (bf16)
//   f32  (layout id kv.f32.t16.1):   K [head_dim][16 tokens],      V [16 tokens][head_dim]         (float)
//   f16  (layout id kv.f16.t16.1):   as f32, of IEEE half precision; what is beyond 65,504 becomes an infinity
//   int8 (layout id kv.int8.t16.1):  K and V as in bf16, of int8 codes, then scale of K [16 tokens], of V [16 tokens] (float)
//     value = code * scale, scale = max|x| / 127 of the token's head, code = round(x * (127 / max|x|)) to nearest even.
//     Scales are float32: 16 of them are one line and one register, and max|x| / 127 is not rounded a second time.
//     A head whose max|x| is below 1e-36 is zero; one that is not finite has codes of 0 and a scale of infinity.
enum KvDtype : int32_t { kKvBf16, kKvFloat, kKvInt8, kKvHalf };
struct KvGroup {
  uint8_t* pool;
  i64 pages, page_bytes, layer_bytes, head_bytes;  // head_bytes: K and V of one head of one layer
  int32_t layers, kv_heads, head_dim, dtype;       // dtype: a KvDtype
  int32_t window, index;                           // 0: full; index of the group in slot.page and step.row_lo
};
constexpr int kPage = 16;    // tokens of a page: unit of layout and hashing
static constexpr i64 kv_head_bytes(i64 head_dim, i64 dtype) {
  const i64 values = 2 * kPage * head_dim;
  return dtype == kKvInt8 ? values + 2 * kPage * 4 : values * (dtype == kKvFloat ? 4 : 2);
}
constexpr int kTile = 32;    // keys of an attention tile, aligned to position 0
constexpr int kSplit = 256;  // keys of a split; splits start from nothing and merge ascending

constexpr int kSections = 3;  // of a node
// What the threads of a node share about a section of it; all 0 when the node starts.
struct alignas(64) Section {
  i64 next;  // first unit that nobody took
  i64 done;  // units that are finished, counted where units are taken
};

struct Format;

// What may differ between machines and changes no bit of any result. Machine::tune() checks each value.
constexpr int kTunedFormats = 32;
struct Tuning {
  // Steps (of 32 k; 4.5 to 8.5 KiB) that one row's stream is prefetched ahead: 100 to 200 ns of it.
  i64 ahead_steps = 8;
  i64 share_rows = 1 << 20;  // bounds that of "linear" from above
  bool matrix = false;       // there is a matrix unit, and it may be used
  struct {
    const Format* format;
    i64 unpack_rows, matrix_rows;
  } formats[kTunedFormats] = {};  // in place of those of the Format; the first nullptr ends the list
};

struct Run {
  int thread, threads;  // of those that share this node: all of the team, or as few as it is worth (tuning.h)
  void* team;
  // Returns when all units of a section are done, and their memory is seen. Every thread of the node calls it.
  void (*meet)(const Run& run, int section, i64 units);
  Section* sections;  // [kSections]
  bool taking;        // units are taken piece by piece, since some thread is late; else they are divided evenly
  uint8_t* scratch;  // this thread's own, 64-byte aligned
  i64 scratch_bytes;
  const i64* dims;  // dimensions evaluated for this step; an argument of kind DIM is an index into it
  const Step* step;
  const Slots* slots;
  const KvGroup* groups;
  uint8_t* arena;  // base of the arena
  i64 iteration;   // index of the run-ahead loop
  const Tuning* tuning;
};

using Kernel = void (*)(const i64* args, const Run& run);

// Adjacent units [begin, end) that a thread does next.
struct Share {
  i64 begin = 0, end = -1;  // -1: nothing taken yet
};

// Takes this thread's next share of the `units` of a section; false when there is none left. What was taken before counts
// as done. Divided: one share a thread, [units * thread / threads, units * (thread + 1) / threads). Taken: a quarter of
// what an even division of the rest would give, so that streams stay long at first and the last pieces are small.
static inline bool take(const Run& run, int section, i64 units, Share& share) {
  if (!run.taking) {
    if (share.end >= 0) return false;
    share.begin = units * run.thread / run.threads;
    share.end = units * (run.thread + 1) / run.threads;
    return share.begin < share.end;
  }
  Section& shared = run.sections[section];
  if (share.begin < share.end) __atomic_fetch_add(&shared.done, share.end - share.begin, __ATOMIC_RELEASE);
  const i64 left = units - __atomic_load_n(&shared.next, __ATOMIC_RELAXED);
  const i64 piece = left / (4 * run.threads) > 1 ? left / (4 * run.threads) : 1;
  share.begin = __atomic_fetch_add(&shared.next, piece, __ATOMIC_RELAXED);
  share.end = share.begin + piece < units ? share.begin + piece : units;
  return share.begin < share.end;
}

// The same one by one, whether a thread is late or not: for units of very different lengths.
static inline bool take_one(const Run& run, int section, i64 units, Share& share) {
  Section& shared = run.sections[section];
  if (run.taking && share.begin < share.end) __atomic_fetch_add(&shared.done, 1, __ATOMIC_RELEASE);
  share.begin = __atomic_fetch_add(&shared.next, 1, __ATOMIC_RELAXED);
  share.end = share.begin + 1;
  if (share.begin < units) return true;
  share.end = share.begin;
  return false;
}

// The unit that take_one() will most likely give next: for prefetches.
static inline i64 next_unit(const Run& run, int section) { return __atomic_load_n(&run.sections[section].next, __ATOMIC_RELAXED); }

// Activations quantized per row (op `quantize`): one after the other the groups of 32 of a row, which takes act_row_bytes(K,
// span) bytes. A group's figures stand beside its codes: a tile reads a row from one address, and a group that is made
// touches one or two lines instead of four.
// scale = max|v| / 127, x = round-to-nearest-even(v * (127 / max|v|)), all zero when max|v| is 0. The maximum is that of `span`
// values: of a group, or of the 8 groups of a super-block where weights need one scale for it (super_tile.h). K is a
// multiple of the span.
// Rows of span 256 have as many groups again, of the rests: where a super-block is *wide*, which is when 2 max^2 is more than
// the sum of its groups' maxima squared, they are round((v * (127 / max) - x) * 128) with a scale of scale / 128; else zeros.
// Rows of float activations (weights in floats) take K * 4 bytes.
struct ActGroup {
  int8_t x[32];
  float scale, scaled_sum;  // scaled_sum = scale * sum
  int16_t sum16[2];         // sums of 16 x each
  int32_t sum;              // of all
};
static_assert(sizeof(ActGroup) == 48);
static constexpr i64 rests_at(i64 K) { return K / 32 * 48; }  // bytes, in a row of span 256
static constexpr i64 act_row_bytes(i64 K, i64 span) { return (K / 32 * 48 * (span == 256 ? 2 : 1) + 63) / 64 * 64; }
static inline const ActGroup* act_groups(const uint8_t* row) { return reinterpret_cast<const ActGroup*>(row); }

// How a format goes about a product; the bits are the same.
struct Way {
  uint8_t* scratch;  // the thread's, at least scratch_bytes(K)
  i64 unpack_rows;   // rows from which a panel is taken apart in the scratch first; 0: never
  i64 ahead_steps;
  i64 matrix_rows;  // rows from which the matrix unit does it; 0: never
};

// A weight format (name table entry "format.<layout id>"): panels of 32 columns, see quantization/format.py.
struct Format {
  i64 (*panel_bytes)(i64 K);
  // 1: rows are quantized activations (act_row_bytes apart; of span 256 if the id ends in .s256), 0: floats (K * 4 bytes apart)
  int32_t quantized_acts;
  // out[r * ld + c] for r in [0, rows), c in [0, 32 * panels): columns of `panels` adjacent panels starting at w.
  // Bits of a row do not depend on rows, panels or the way.
  void (*linear)(const uint8_t* w, i64 K, i64 panels, const uint8_t* acts, i64 rows, float* out, i64 ld, const Way& way);
  i64 (*scratch_bytes)(i64 K);
  // out[k] = float value of weight (column, k), for the embedding: column in [0, 32) of the panel at w.
  void (*column)(const uint8_t* w, i64 K, int column, float* out);
  i64 unpack_rows, matrix_rows;  // of Way, where no machine was measured
};

static inline Way way_of(const Run& run, const Format& format, uint8_t* scratch) {
  const Tuning& tuning = *run.tuning;
  Way way = {scratch, format.unpack_rows, tuning.ahead_steps, format.matrix_rows};
  for (int i = 0; i < kTunedFormats && tuning.formats[i].format != nullptr; i++) {
    const auto& tuned = tuning.formats[i];
    if (tuned.format == &format) way.unpack_rows = tuned.unpack_rows, way.matrix_rows = tuned.matrix_rows;
  }
  if (!tuning.matrix) way.matrix_rows = 0;
  return way;
}

// A row op in a prologue: changes one row of K floats in place. `row` is the row of this Program's own rows.
using RowFn = void (*)(const i64* args, const Run& run, i64 row, float* x, i64 K);

// A row op in an epilogue works on a tile: all rows of a phase x one unit of adjacent output columns.
struct Tile {
  float* data;  // [rows][ld], the tile's columns first
  i64 ld, rows;
  i64 row0;  // first row
  i64 cols;  // columns now (silu_mul halves it)
  i64 col0;  // first column of the tile in the output of its column group
};
using TileFn = void (*)(const i64* args, const Run& run, Tile& tile);

// What one variant exports.
struct Entry {
  const char* name;
  const void* address;
};
struct Variant {
  const char* name;  // portable, avx2, avx512, avx512bf16
  const Entry* entries;
  i64 count;
};

// ---------------------------------------------------------------------------------------------------------------------
// Arguments of the nodes. [dim]: index into run.dims. ptr: address. f: float bits.
//
// "embedding"  0 rows[dim] 1 K 2 weight ptr 3 Format ptr 4 out ptr f32 [rows][K] 5 scale f
//              6 which column of the weight row r is: 0 slots.ids[row_slot[r]][row_pos[r]], 1 row_pos[r],
//              2 row_pos[r] >= slots.second[row_slot[r]]
// "linear"     0 rows[dim] 1 K 2 src ptr f32 (input of the prologue, rows apart by arg 3 floats; 0 when acts are ready)
//              3 src_ld 4 acts ptr (shared activations: where the prologue puts them or where they are) 5 span
//              of quantized ones (32 or 256; 0: they are float) 6 share_rows (prologue is done once by rows, with an inner barrier, when
//              rows > share_rows; else every thread does all rows in its scratch; same bits)
//              7 gather ptr int32 [rows] or 0: source row of each row (relative to header.logit_first), for the head
//              8 number of prologue ops, then each {RowFn, n, args...}
//              then number of column groups, each: unit (columns of a work unit per weight), units, N (columns of the
//              output per weight), number of weights (2: gate and up, tile = unit columns of the first, then unit columns
//              of the second), each weight {ptr, Format ptr}, number of epilogue ops, each {TileFn, n, args...}.
//              Work units of all groups are numbered in order; a thread takes adjacent ones. Where rows are many a unit is
//              taken in parts of its rows.
//              unit is a multiple of 32 and of the head size where heads matter. The last unit may be narrower: its tile
//              has cols = N - col0 and its weight has ceil(cols / 32) panels left; columns that pad a panel are computed
//              into the tile's memory and not counted in cols. With two weights N is a multiple of unit, always (a padded
//              column is 0 there, and the destination is that wide).
// "attention"  0 rows[dim] 1 q ptr f32 [rows][heads * head_dim] 2 q_ld 3 group 4 layer in group 5 heads 6 scale f
//              7 soft cap f (0: none) 8 sinks ptr f32 [heads] or 0 9 workspace ptr (partials) 10 workspace bytes
//              11 number of epilogue ops, then each {TileFn, n, args...}; tile = one row block x the heads of one kv head,
//              col0 = first column of those heads in [heads * head_dim]
// "rows"       0 rows[dim] 1 K 2 src ptr f32 3 src_ld 4 number of ops, then each {TileFn, n, args...}; tile = whole rows
// "moe"        0 rows[dim] 1 logits ptr f32 2 logits_ld 3 experts 4 chosen (experts of a row) 5 their weights: a softmax over
//              0 the chosen, 1 all logits 6 share_rows (as of linear, of the choosing) 7 routes ptr: int32 ids [rows][chosen],
//              ascending in a row, then float weights [rows][chosen] 8 block (pairs of an expert that go together at most)
//              9 active ptr int64: how many experts have rows; then two stages, each: acts ptr, span, K, columns of a
//              weight, number of weights, each {ptr, Format ptr, bias ptr f32 [experts][columns] or 0}, number of ops, then
//              each {TileFn, n, args...}. Experts of a weight lie one after the other, ceil(columns / 32) panels each.
//              Pairs are (row, expert) in the order of experts, rows ascending. Stage 1: acts are the rows', the tile pairs x
//              columns (of two weights as in linear; the first op joins them); its ops leave the acts of stage 2. Stage 2:
//              acts are the pairs', the tile rows x columns of the sum over a row's experts. 0 weights: it is left out.
// "sample"     0 logits ptr f32 [chunk rows][ld] 1 ld 2 vocabulary 3 workspace ptr 4 workspace bytes 5 rows[dim] of the chunk
//              result row of chunk row i: header.result_first + header.logit_first + i
// NAME.ahead, where it exists: called before the barrier in front of node NAME with its arguments; it may prefetch.
// RowFn  "row.rms_norm"   0 weight ptr f32 [K] 1 eps f     "row.layer_norm" 0 weight ptr f32 [K] 1 bias ptr f32 [K] 2 eps f
// TileFn "tile.bias"      0 ptr f32 [N]
//        "tile.rope"      0 cos ptr f32 [positions][rotary/2] 1 sin ptr 2 head_dim 3 rotary   (halves: x[i], x[i + rotary/2])
//        "tile.kv_write"  0 group 1 layer 2 which (0: K, 1: V); tile columns are whole heads
//        "tile.store"     0 ptr f32 1 ld        "tile.add"  0 residual ptr f32 1 ld 2 out ptr f32 3 ld (may be the same)
//        "tile.silu_mul"  tile [gate | up] -> gate * sigmoid(gate) * up, cols halves
//        "tile.clamped_swiglu" 0 alpha f 1 limit f: the same with gate at most and up within limit: gate * sigmoid(alpha * gate) *
//                         (up + 1)
//        "tile.gelu_mul"  the same with gelu, in its form with tanh; "tile.gelu" of a tile alone, "tile.gelu_erf" exact
//        "tile.sigmoid_mul" 0 gate ptr f32 1 ld: each row times the sigmoid of its gate
//        "tile.scale"     0 factor f           "tile.softcap" 0 cap f: cap * tanh(x / cap)
//        "tile.head_norm" 0 weight ptr f32 [size] 1 eps f 2 size: rms_norm of every `size` columns; "tile.rms_norm" is the same
//                         and "tile.layer_norm" 0 weight ptr 1 bias ptr 2 eps f 3 size: in "rows", where size is the row
//        "tile.quantize"  0 acts ptr 1 K of the consumer (rows act_row_bytes(K, span) apart) 2 span; cols and col0 multiples of it
// ---------------------------------------------------------------------------------------------------------------------

}  // namespace octavo
