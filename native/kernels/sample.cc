// The node "sample": logits of a head chunk -> token ids, log-probabilities, ranks, lists of the most likely ids. Knows
// parameters by their columns of the slot table alone; nothing of stop strings, grammars' meaning or requests.
//
// A row is done by one thread from end to end, and its result depends on its logits, its slot and its position alone, so
// not on threads or the batch. Order of the steps (ops/sample.py states the same):
//   1. a NaN or an infinity among the raw logits: status 1, token -1. Raw values stay as they are for 6.
//   2. allowed ids (mask), logit_bias, bad_words, min_tokens             on a copy of the row, if any applies
//   3. repetition_penalty, then frequency_penalty and presence_penalty; DRY
//   4. temperature 0: the first id in the total order (value descending, id ascending)
//   5. a slot with a chain: its samplers in its own order (sample_chain.h)
//      else weights e^((value - max) / temperature); min_p, then top_k, then top_p cut the tail; one uniform of
//      Philox(seed; position of the new token, choice, draw 0, 0) picks from the cumulative weights in ascending ids
//   6. logprobs: log-softmax of the raw logits at the chosen id, its rank among them, and the most likely ids
// A row with logit_target >= 0 skips 2 to 5: it reports 6 for that id, with all 20 most likely ids.
// Status 2, token -1: every id is forbidden (or a target outside the vocabulary). Status 4, token -1: the mask of a grammar
// is not there yet (slots.masked 2, tape.cc). All of them count in header.nonfinite.
//
// Sums of weights: 16 lanes over the 16 vectors of a block of 256 ids ascending, the fixed tree of reduce_add, then blocks
// ascending in double. Blocks that a cut leaves out add 0, so skipping them changes no bit. Within the block that holds the
// drawn point, weights add up one by one in double; the block's last id with a weight takes what rounding leaves.
//
// Workspace: threads * sample_bytes(vocabulary), in bytes, with P = 256 ceil(V / 256):
//   sample_bytes(V) = 16 P + P / 2 + align64(P / 64)        (49,152 ids: 812 KB a thread; 151,936: 2.5 MB)
// If fewer bytes are given, fewer threads work.
//
// Microseconds a row of 49,152 ids, one thread of a Zen 5 server core (other work on the machine), avx512 / avx2: greedy
// 2 / 2; temperature 13 / 31; top_k 50 9 / 13; top_p 0.9 20 / 48; greedy with 20 logprobs 14 / 36; repetition penalty over
// 2,000 ids, greedy 20 / 20; temperature, top_k 40, top_p 0.95, repetition over 500 ids, 5 logprobs 24 / 45; top_p 0.9 of a
// flat row 100 / 300; top_k 5,000 80 / 300.
#include "sample_chain.h"

OCTAVO_BEGIN
namespace {

static inline i64 padded(i64 V) { return (V + kBlockIds - 1) / kBlockIds * kBlockIds; }

static inline i64 sample_bytes(i64 V) {
  const i64 P = padded(V);
  return 16 * P + P / 2 + (P / 64 + 63) / 64 * 64;
}

static Workspace carve(uint8_t* at, i64 V) {
  const i64 P = padded(V);
  float* f = reinterpret_cast<float*>(at);
  return {f, reinterpret_cast<int32_t*>(f + P), f + 2 * P, f + 4 * P, f + 4 * P + P / 16, f + 4 * P + P / 8, f + 3 * P};
}

// Steps 4 and 5.
static int32_t choose(const Values& row, const Choice& c, const Workspace& ws, float* mu) {
  const Slots& s = *c.slots;
  const i64 n = c.slot;
  if (s.temperature[n] == 0.0f) return argmax(row);
  int32_t links[kSamplerSteps];
  if (chained(c)) return run_chain(row, c, first_changes(c, links), ws, mu);
  const Weighing weigh = {row.most, 1.0f / s.temperature[n], s.min_p[n]};
  const i64 k = s.top_k[n];
  const float p = s.top_p[n];
  Candidates list = {ws.ids, ws.weights, padded(row.V), 0};
  Cut cut = kEverything;
  if (k > 0 && k < row.V) {
    cut = top_k(row, weigh, k, list, ws.sums, p < 1.0f);
    if (p < 1.0f) cut = top_p_of(row, p, list);
  } else if (p < 1.0f) {
    cut = top_p(row, Weights{weigh}, p, list);
  }
  double whole = 0;
  return pick(row, weigh, cut, drawn(c, kPickDraw), ws.sums, &whole);
}

// Step 6 for result row r.
static void report(const Values& raw, int32_t id, i64 wanted, const Step& step, i64 r, const Workspace& ws) {
  const double log_sum = natural_log(total(raw, plain(raw), kEverything, ws.sums));
  const double most = raw.most;
  step.out_logprob[r] = static_cast<float>(static_cast<double>(raw.v[id]) - most - log_sum);
  step.out_rank[r] = rank(raw, id);
  int32_t* top = step.out_top_id + r * kMaxTopLogprobs;
  const i64 n = most_likely(raw, wanted, top, ws);
  for (i64 k = 0; k < n; k++)
    step.out_top_logprob[r * kMaxTopLogprobs + k] = static_cast<float>(static_cast<double>(raw.v[top[k]]) - most - log_sum);
}

static void clear_result(const Step& step, i64 r) {
  step.out_token[r] = -1;
  step.out_logprob[r] = 0.0f;
  step.out_rank[r] = 0;
  step.out_status[r] = 0;
  step.out_mu[r] = 0.0f;
  for (i64 k = r * kMaxTopLogprobs; k < (r + 1) * kMaxTopLogprobs; k++) {
    step.out_top_id[k] = -1;
    step.out_top_logprob[k] = 0.0f;
  }
}

static void refuse(const Step& step, i64 r, int32_t status) {
  step.out_status[r] = status;
  __atomic_fetch_add(&step.header[H_nonfinite], 1, __ATOMIC_RELAXED);
}

// Logit row `logit` of the step, whose logits are v [V], into result row r.
static void sample_row(const Run& run, const float* v, i64 V, i64 logit, i64 r, const Workspace& ws) {
  const Step& step = *run.step;
  const Slots& slots = *run.slots;
  clear_result(step, r);
  bool finite = false;
  const float most = scan(v, V, ws.raw_maxima, &finite);
  if (!finite) return refuse(step, r, 1);
  const Values raw = {v, V, padded(V) / kBlockIds, ws.raw_maxima, most};
  const int32_t target = step.logit_target[logit];
  if (target >= 0) {
    if (target >= V) return refuse(step, r, 2);
    step.out_token[r] = target;
    return report(raw, target, kMaxTopLogprobs, step, r, ws);
  }
  const i64 slot = step.seq_slot[step.logit_seq[logit]];
  const i64 position = static_cast<i64>(step.row_pos[step.logit_row[logit]]) + 1;
  if (slots.masked[slot] == 2) return refuse(step, r, 4);
  const Choice choice = {slots.ids + slot * slots.L, position, slots.prompt_len[slot], &slots, slot};
  step.out_mu[r] = slots.mu[slot];
  Values values = raw;
  if (changes(choice)) {
    for (i64 i = 0; i < V; i += 16) put_values(ws.values, i, V, values_at(v, i, V));
    change(choice, V, reinterpret_cast<uint32_t*>(ws.ids), ws.values);
    const float changed = scan(ws.values, V, ws.maxima, &finite);
    values = {ws.values, V, raw.blocks, ws.maxima, changed};
    if (changed == -kInfinity) return refuse(step, r, 2);
  }
  const int32_t token = choose(values, choice, ws, &step.out_mu[r]);
  if (token < 0) return refuse(step, r, 2);
  step.out_token[r] = token;
  if (slots.logprobs[slot] >= 0) {
    const i64 wanted = slots.logprobs[slot];
    report(raw, token, wanted < kMaxTopLogprobs ? wanted : kMaxTopLogprobs, step, r, ws);
  }
}

// Arguments: see kernel.h. Rows are taken one by one.
static void sample(const i64* args, const Run& run) {
  const float* logits = reinterpret_cast<const float*>(args[0]);
  const i64 ld = args[1], V = args[2], rows = run.dims[args[5]];
  const i64 stride = sample_bytes(V);
  if ((run.thread + 1) * stride > args[4]) __builtin_trap();  // a mistake of the plan
  const Workspace ws = carve(reinterpret_cast<uint8_t*>(args[3]) + run.thread * stride, V);
  const i64 first = run.step->header[H_logit_first], result = run.step->header[H_result_first] + first;
  for (Share row; take_one(run, 0, rows, row);) {
    const i64 i = row.begin;
    sample_row(run, logits + i * ld, V, first + i, result + i, ws);
  }
}

}  // namespace

OCTAVO_ENTRIES(sample, {"sample", OCTAVO_FN(sample)})
OCTAVO_END
