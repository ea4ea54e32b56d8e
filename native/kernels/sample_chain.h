// A chain of samplers: the slot's own order of filters, each on what the ones before it left. Included by sample.cc alone.
// Rows without a chain never come here. Knows codes of samplers and slots; what a filter means stands in sample_filters.h.
//
// A filter gives a cut; what it drops becomes -inf in the thread's copy of the row. A block without an id left is dead: its
// maxima are -inf, its values are never read again nor written, so that everything behind a top_k costs next to nothing. Only
// blocks that live are copied: a chain that begins with a filter never copies the row.
#pragma once
#include "philox.h"
#include "sample_filters.h"

OCTAVO_BEGIN
namespace {

// One thread's part of the workspace.
struct Workspace {
  float* values;      // [P] the changed copy
  int32_t* ids;       // [P] candidates; counts of the penalties before that
  float* weights;     // [P] of candidates
  float* raw_maxima;  // [P / 16]
  float* maxima;      // [P / 16] of the changed copy
  float* sums;        // [P / 256] of blocks
  float* kept_weights;  // [P] of the changed copy (Values::weights)
};

enum Draw : uint32_t { kPickDraw = 0, kXtcDraw = 1 };  // numbers of a position; each has its own

static double drawn(const Choice& c, Draw draw) {
  const Slots& s = *c.slots;
  return uniform(philox(s.seed[c.slot], static_cast<uint32_t>(c.position), static_cast<uint32_t>(s.choice[c.slot]), draw, 0));
}

// What of a row stays: values are changed by operator(), and a block where some() says no dies.
template <class SCORE>
struct AtOrBefore {
  static constexpr bool kTakesAway = true;  // and changes no value
  SCORE score;
  Cut cut;
  bool some(F maxima) const { return any(ge(score.most(maxima), set1(cut.value))); }
  F operator()(F value, i64 i) const { return kept(cut, score(value), i, value, set1(-kInfinity)); }
};
struct AtOrBehind {
  static constexpr bool kTakesAway = true;
  Cut cut;
  bool some(F) const { return true; }
  F operator()(F value, i64 i) const { return kept({cut.value, cut.id - 1}, value, i, set1(-kInfinity), value); }
};
struct Heavy {
  static constexpr bool kTakesAway = true;
  Weights weights;
  float least;
  bool some(F maxima) const { return any(ge(weights.weigh(maxima), set1(least))); }
  F operator()(F value, i64 i) const { return select(ge(weights(value, i), set1(least)), value, set1(-kInfinity)); }
};
struct Scaled {
  static constexpr bool kTakesAway = false;
  float by;
  bool some(F) const { return true; }
  F operator()(F value, i64) const { return min(mul(value, set1(by)), set1(3.4e38f)); }  // never +inf
};

template <class KEEP>
static void reduce(Values& row, const KEEP& keep, const Workspace& ws) {
  F most = set1(-kInfinity);
  for (i64 b = 0; b < row.blocks; b++) {
    F top = set1(-kInfinity);
    if (alive(row, b) && keep.some(load(row.maxima + b * 16)))
      for (i64 i = b * kBlockIds, end = i + 16 * vectors_of(row.V, b); i < end; i += 16) {
        const F left = keep(values_at(row.v, i, row.V), i);
        put_values(ws.values, i, row.V, left);
        top = max(top, left);
      }
    store(ws.maxima + b * 16, top);
    most = max(most, top);
  }
  const float greatest = reduce_max(most);
  const bool weighed = KEEP::kTakesAway && row.weighed && greatest == row.most;
  row = {ws.values, row.V, row.blocks, ws.maxima, greatest, ws.kept_weights, weighed};
}

// Blocks that it does not weigh have nothing that stays.
static void keep_heavy(Values& row, float least, const Workspace& ws) {
  const Heavy heavy = {weights_of(row), least};
  row.weighed = row.weights != nullptr;
  reduce(row, heavy, ws);
}

static void keep_top(Values& row, i64 k, Candidates& list, const Workspace& ws) {
  if (k > 0 && k < row.V) reduce(row, AtOrBefore<ByValue>{{}, top_k(row, plain(row), k, list, ws.sums, false)}, ws);
}

// The k most likely ids of a row in order, k <= kMostSorted; their number.
constexpr i64 kMostSorted = 100;
static i64 most_likely(const Values& row, i64 k, int32_t* out, const Workspace& ws) {
  k = k < row.V ? k : row.V;
  if (k == 0) return 0;
  Candidates list = {ws.ids, ws.weights, row.blocks * kBlockIds, 0};
  if (k < row.V) {
    top_k(row, plain(row), k, list, ws.sums, true);
  } else {
    collect(row, ByValue{}, plain(row), -kInfinity, kInfinity, list);
  }
  for (i64 n = 0; n < list.n; n++) {  // insertion: at most 100
    const int32_t id = list.ids[n];
    i64 at = n;
    for (; at > 0 && order_key(row.v[out[at - 1]], out[at - 1]) < order_key(row.v[id], id); at--) out[at] = out[at - 1];
    out[at] = id;
  }
  return list.n;
}

// The last link of a chain with mirostat: keeps what mu allows, picks, and moves mu by what the id's surprise missed.
static int32_t mirostat(Values& row, const Choice& c, bool second, Candidates& list, const Workspace& ws, float* mu) {
  const Slots& s = *c.slots;
  if (second) {
    const float least = mirostat_least(row, *mu, ws.sums);
    if (least > 1.0f) {
      reduce(row, AtOrBefore<ByValue>{{}, {row.most, argmax(row)}}, ws);
    } else {
      keep_heavy(row, least, ws);
    }
  } else {
    int32_t ids[kMostSorted];
    float top[kMostSorted];
    const i64 n = most_likely(row, kMostSorted, ids, ws);
    for (i64 k = 0; k < n; k++) top[k] = row.v[ids[k]];
    keep_top(row, mirostat_count(top, n, row.V, *mu), list, ws);
  }
  double whole = 0;
  const int32_t id = pick(row, weights_of(row), kEverything, drawn(c, kPickDraw), ws.sums, &whole);
  if (id < 0) return id;
  const double log_p = (static_cast<double>(row.v[id]) - static_cast<double>(row.most)) - natural_log(whole);
  *mu = static_cast<float>(*mu - static_cast<double>(s.mirostat_eta[c.slot]) * (-log_p / kLn2 - s.mirostat_tau[c.slot]));
  return id;
}

static void keep_share(Values& row, float share, Candidates& list, const Workspace& ws) {
  const Cut cut = top_p(row, weights_of(row), share, list);
  row.weighed = row.weights != nullptr;
  reduce(row, AtOrBefore<ByValue>{{}, cut}, ws);
}

static void link_temperature(Values& row, const Choice& c, const Workspace& ws) {
  const Slots& s = *c.slots;
  float t = s.temperature[c.slot];
  if (s.dynatemp_range[c.slot] > 0.0f) t = dynamic_temperature(row, t, s.dynatemp_range[c.slot], s.dynatemp_exponent[c.slot]);
  if (t != 1.0f) reduce(row, Scaled{1.0f / t}, ws);
}

static void link_xtc(Values& row, const Choice& c, const Workspace& ws) {
  const Slots& s = *c.slots;
  if (drawn(c, kXtcDraw) >= static_cast<double>(s.xtc_probability[c.slot])) return;
  const Cut last = xtc(row, s.xtc_threshold[c.slot], ws.sums);
  if (last.value > -kInfinity) reduce(row, AtOrBehind{last}, ws);
}

// Penalties behind a filter: on a copy of what is left.
static void link_change(Values& row, const Choice& c, int32_t link, const Workspace& ws) {
  reduce(row, Scaled{1.0f}, ws);
  change_link(c, link, row.V, reinterpret_cast<uint32_t*>(ws.ids), ws.values);
  reduce(row, Scaled{1.0f}, ws);  // new maxima
}

// The id that the chain gives from its link `first` on; *mu becomes the state after it.
static int32_t run_chain(Values row, const Choice& c, i64 first, const Workspace& ws, float* mu) {
  row.weights = ws.kept_weights;
  const Slots& s = *c.slots;
  const i64 n = c.slot;
  Candidates list = {ws.ids, ws.weights, row.blocks * kBlockIds, 0};
  for (i64 k = first; k < kSamplerSteps; k++) {
    const int32_t link = s.chain[n * kSamplerSteps + k];
    switch (link) {
      case S_penalties:
      case S_dry: link_change(row, c, link, ws); break;
      case S_top_n_sigma: reduce(row, AtOrBefore<ByValue>{{}, top_n_sigma(row, s.top_n_sigma[n])}, ws); break;
      case S_top_k: keep_top(row, s.top_k[n], list, ws); break;
      case S_typ_p: {
        const ByNearness near = typical_centre(row);
        reduce(row, AtOrBefore<ByNearness>{near, typical_p(row, near, s.typical_p[n], list)}, ws);
        break;
      }
      case S_top_p: keep_share(row, s.top_p[n], list, ws); break;
      case S_min_p: keep_heavy(row, s.min_p[n], ws); break;
      case S_xtc: link_xtc(row, c, ws); break;
      case S_temperature: link_temperature(row, c, ws); break;
      case S_mirostat:
      case S_mirostat_v2: return mirostat(row, c, link == S_mirostat_v2, list, ws, mu);
      default: k = kSamplerSteps;  // S_pick, or a slot that is not ours
    }
  }
  double whole = 0;
  return pick(row, weights_of(row), kEverything, drawn(c, kPickDraw), ws.sums, &whole);
}

}  // namespace
OCTAVO_END
