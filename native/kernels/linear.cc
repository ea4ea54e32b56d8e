// Kernel "linear": a phase of {row prologue, list of weights, tile epilogue}. Prepares the activations, takes its share of
// the work units of all column groups and runs the epilogue on each tile while it is in cache. Knows formats and
// ops by their functions only. Arguments: see kernel.h.
//
// A tile holds one unit, or several adjacent units of a group where rows are few: ops see more columns at once. Where all
// rows of a tile do not fit the scratch it is done in blocks of rows. Tried and dropped: four panels in turn over 512 rows,
// so that the rows come from L2: no difference (Q4_K, K 1536 and 8960). Blocks of 96 rows, each over units of 0, 256 or 512 KiB
// of weights, so that its tiles are in L1 when the epilogue reads them: 0 to 1 % of a prefill (SmolLM2, 512 rows); tiles of 16,
// 24 and 32 KiB with rows divided: no difference.
//
// Measured on a Zen 5, 2 threads, prefill of 512 in turns: dividing rows instead of columns took SmolLM2 from 104.8 to 104.3 ms
// (best) and from 108.9 to 105.7 (median), from 119 to 110 in a slower state of the host (memory reads faster in it and a line
// of the other thread's is dear, as if they were on two chiplets); the 1.5B from 1,112 and 1,138 to 1,089 and 1,105. 128 rows: no
// difference. Prefetching the rows of the next tile: 0 to 1 %, dropped.
#include "inlined.h"
#include "quantize_row.h"

OCTAVO_BEGIN
namespace {

// 64 KiB of tile: what a decode step gathers into one call, small beside a 512 KiB L2.
constexpr i64 kTileFloats = 16384;
// Of many rows with a matrix unit, which arranges 16 rows once for all columns of a call: 256 rows x 384 columns.
constexpr i64 kMatrixFloats = 98304;
// 32 lines: what a core has in flight; the tile's own prefetches go on from there. 8 KiB: no difference on SmolLM2.
constexpr i64 kAheadBytes = 2048;

// How the work is cut into items: units of columns x parts of rows.
struct Division {
  i64 units, parts;
  bool by_rows;  // items of a part are adjacent, else those of a unit
  i64 items() const { return units * parts; }
};

// Rows of a thread from which it keeps to its own: then what it writes it also reads, from its L2, and the weights, which
// every thread reads then, are 3 GB/s a thread. With fewer rows it has columns of its own: a unit is divided by rows too
// where there are some, since 15 units are 7 and 8 for two threads. 16 rows are three tiles.
constexpr i64 kOwnRows = 96;
inline Division divide(i64 units, i64 rows, i64 threads) {
  if (rows >= kOwnRows * threads) return {units, threads, true};
  return {units, rows < 32 ? 1 : least(rows / 16, 4), false};
}

struct Weight {
  const uint8_t* data;
  const Format* format;
};
struct Group {
  i64 unit, units, N, weights;
  Weight weight[2];
  Ops ops;
};
inline Group take_group(const i64*& at) {
  Group group = {at[0], at[1], at[2], at[3], {}, {}};
  at += 4;
  for (i64 i = 0; i < group.weights; i++, at += 2) {
    group.weight[i] = {reinterpret_cast<const uint8_t*>(at[0]), reinterpret_cast<const Format*>(at[1])};
  }
  group.ops = take_ops(at);
  return group;
}

struct Phase {
  i64 rows, K;
  const float* src;
  i64 src_ld;
  uint8_t* acts;
  i64 span;  // of quantized activations; 0: floats
  i64 share_rows;
  const int32_t* gather;
  Ops prologue;
  i64 row_bytes() const { return span ? act_row_bytes(K, span) : K * 4; }
};

// Rows [first, last) of the input through the prologue into `acts`; `x` is room for one row of floats.
void prepare(const Phase& phase, const Run& run, i64 first, i64 last, uint8_t* acts, float* x) {
  for (i64 r = first; r < last; r++) {
    uint8_t* row = acts + r * phase.row_bytes();
    const i64 from = phase.gather ? phase.gather[run.step->header[H_logit_first] + r] : r;
    const float* src = phase.src + from * phase.src_ld;
    if (phase.span && phase.prologue.count == 0) {
      quantize_row(src, phase.K, phase.span, row);
      continue;
    }
    float* to = phase.span ? x : reinterpret_cast<float*>(row);
    for (i64 k = 0; k < phase.K; k++) to[k] = src[k];
    each_op(phase.prologue, [&](i64 function, const i64* args) {
      reinterpret_cast<RowFn>(function)(args, run, r, to, phase.K);
    });
    if (phase.span) quantize_row(to, phase.K, phase.span, row);
  }
}

// Units [first, last) and rows [row0, row1) of a phase.
struct Piece {
  i64 first, last, row0, row1;
};

// A piece of one group: tiles in `room` (bytes) behind the scratch of the formats.
void run_units(const Group& group, const Piece& piece, const Phase& phase, const Run& run, const uint8_t* acts,
               uint8_t* scratch, i64 room) {
  i64 own = 0;
  for (i64 i = 0; i < group.weights; i++) own = most(own, whole(group.weight[i].format->scratch_bytes(phase.K), 64));
  float* data = reinterpret_cast<float*>(scratch + own);
  const i64 rows = piece.row1 - piece.row0, floats = (room - own) / 4, width = group.unit * group.weights;
  const i64 wanted = run.tuning->matrix && rows >= kOwnRows ? kMatrixFloats : kTileFloats;
  const i64 most_units = most(1, least(wanted, floats) / (rows * width));
  for (i64 u = piece.first; u < piece.last;) {
    const i64 units = least(most_units, piece.last - u);
    const i64 col0 = u * group.unit, cols = least(units * group.unit, group.N - col0);
    const i64 padded = whole(cols, 32), ld = padded * group.weights;
    const i64 block = least(rows, floats / ld);
    if (block < 1) __builtin_trap();  // the plan gives room for a row of every unit: anything else would write elsewhere
    for (i64 r = piece.row0; r < piece.row1; r += block) {
      Tile tile = {data, ld, least(block, piece.row1 - r), r, group.weights == 1 ? cols : ld, col0};
      for (i64 i = 0; i < group.weights; i++) {
        const Format& format = *group.weight[i].format;
        format.linear(group.weight[i].data + col0 / 32 * format.panel_bytes(phase.K), phase.K, padded / 32,
                      acts + r * phase.row_bytes(), tile.rows, data + i * padded, ld, way_of(run, format, scratch));
      }
      run_ops(group.ops, run, tile);
    }
    u += units;
  }
}

// A piece of the units of all groups; `at` is the list of groups.
void run_piece(const i64* at, i64 groups, const Piece& piece, const Phase& phase, const Run& run, const uint8_t* acts,
               i64 used) {
  i64 base = 0;
  for (i64 g = 0; g < groups; g++) {
    const Group group = take_group(at);
    const Piece own = {most(piece.first, base) - base, least(piece.last, base + group.units) - base, piece.row0, piece.row1};
    if (own.first < own.last) run_units(group, own, phase, run, acts, run.scratch + used, run.scratch_bytes - used);
    base += group.units;
  }
}

// The activations that this thread reads; `used` bytes of its scratch are taken.
const uint8_t* activations(const Phase& phase, const Run& run, i64& used) {
  used = 0;
  if (!phase.src) return phase.acts;
  const bool plain = !phase.span && phase.prologue.count == 0 && !phase.gather && phase.src_ld == phase.K;
  if (plain) return reinterpret_cast<const uint8_t*>(phase.src);
  float* x = reinterpret_cast<float*>(run.scratch);
  const i64 one = whole(phase.K * 4, 64);
  if (phase.rows > least(phase.share_rows, run.tuning->share_rows)) {
    for (Share rows; take(run, 0, phase.rows, rows);) prepare(phase, run, rows.begin, rows.end, phase.acts, x);
    run.meet(run, 0, phase.rows);
    return phase.acts;
  }
  used = one + whole(phase.rows * phase.row_bytes(), 64);
  if (used > run.scratch_bytes) __builtin_trap();  // the plan gives room for share_rows rows
  prepare(phase, run, 0, phase.rows, run.scratch + one, x);
  return run.scratch + one;
}

Phase take_phase(const i64* args, const Run& run, const i64*& at) {
  Phase phase = {run.dims[args[0]], args[1], reinterpret_cast<const float*>(args[2]), args[3],
                 reinterpret_cast<uint8_t*>(args[4]), args[5], args[6], reinterpret_cast<const int32_t*>(args[7]), {}};
  at = args + 8;
  phase.prologue = take_ops(at);
  return phase;
}

i64 count_units(const i64* at, i64 groups) {
  i64 units = 0;
  for (i64 g = 0; g < groups; g++) units += take_group(at).units;
  return units;
}

// Items [begin, end).
void run_items(const i64* at, i64 groups, Share items, const Division& cut, const Phase& phase, const Run& run,
               const uint8_t* acts, i64 used) {
  const auto row = [&](i64 part) { return phase.rows * part / cut.parts; };
  while (items.begin < items.end) {
    const i64 left = items.end - items.begin;
    if (cut.by_rows) {
      const i64 part = items.begin / cut.units, unit = items.begin % cut.units, end = least(cut.units, unit + left);
      run_piece(at, groups, {unit, end, row(part), row(part + 1)}, phase, run, acts, used);
      items.begin += end - unit;
      continue;
    }
    const i64 unit = items.begin / cut.parts, part = items.begin % cut.parts;
    if (part == 0 && left >= cut.parts) {
      run_piece(at, groups, {unit, unit + left / cut.parts, 0, phase.rows}, phase, run, acts, used);
      items.begin += left / cut.parts * cut.parts;
    } else {
      const i64 end = least(cut.parts, part + left);
      run_piece(at, groups, {unit, unit + 1, row(part), row(end)}, phase, run, acts, used);
      items.begin += end - part;
    }
  }
}

void linear(const i64* args, const Run& run) {
  const i64* at;
  const Phase phase = take_phase(args, run, at);
  if (phase.rows <= 0) return;
  i64 used;
  const uint8_t* acts = activations(phase, run, used);
  const i64 groups = *at++;
  const Division cut = divide(count_units(at, groups), phase.rows, run.threads);
  for (Share share; take(run, 1, cut.items(), share);) run_items(at, groups, share, cut, phase, run, acts, used);
}

// What this thread will read first in the node after a barrier, fetched while it waits there.
void linear_ahead(const i64* args, const Run& run) {
  const i64* at;
  const Phase phase = take_phase(args, run, at);
  if (phase.rows <= 0) return;
  const i64 groups = *at++;
  const Division cut = divide(count_units(at, groups), phase.rows, run.threads);
  i64 unit = cut.by_rows ? 0 : cut.units * run.thread / run.threads;
  for (i64 g = 0; g < groups; g++) {
    const Group group = take_group(at);
    if (unit < group.units) {
      const Weight& weight = group.weight[0];
      const uint8_t* first = weight.data + unit * group.unit / 32 * weight.format->panel_bytes(phase.K);
      for (i64 i = 0; i < kAheadBytes; i += 64) simd::prefetch(first + i);
      return;
    }
    unit -= group.units;
  }
}

}  // namespace

OCTAVO_ENTRIES(linear, {"linear", OCTAVO_FN(linear)}, {"linear.ahead", OCTAVO_FN(linear_ahead)})

OCTAVO_END
