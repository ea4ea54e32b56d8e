// One function per sampling parameter, in the order of sample.cc: those that change values in place, then those that cut
// the tail off. Included by sample.cc alone. They know a row, one slot and its position; nothing of threads or results.
//
// top_k and top_p give a Cut through the total order (value descending, id ascending), so that ties are settled by the id
// and a top_k of k keeps exactly k ids; min_p is part of an id's weight. Nothing is sorted; see sample_select.h.
#pragma once
#include "sample_select.h"

OCTAVO_BEGIN
namespace {

// The parameters of one sequence: its row of the slot table.
struct Choice {
  const int32_t* ids;  // what is known before the position: ids[0, position)
  i64 position, prompt;
  const Slots* slots;
  i64 slot;
};

static inline bool in_vocabulary(int32_t id, i64 V) { return static_cast<uint32_t>(id) < static_cast<uint64_t>(V); }

// allowed_token_ids, grammars: ids without their bit are forbidden.
static void allow(const uint32_t* mask, i64 V, float* v) {
  alignas(64) static constexpr int32_t kBit[16] = {1,      1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                                                   1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
  for (i64 i = 0; i < V; i += 16) {
    const I word = seti(static_cast<int32_t>(mask[i / 32] >> (i % 32)));
    const M forbidden = eq_i(and_i(word, loadi(kBit)), zeroi());
    put_values(v, i, V, select(forbidden, set1(-kInfinity), values_at(v, i, V)));
  }
}

// logit_bias: value + bias.
static void bias(const int32_t* ids, const float* values, i64 n, i64 V, float* v) {
  for (i64 k = 0; k < n && k < kMaxLogitBias; k++)
    if (in_vocabulary(ids[k], V)) v[ids[k]] += values[k];
}

// bad_words: {length, ids...} ..., 0. The last id of a word is forbidden where the ids before it end what is known.
static void forbid_words(const int32_t* words, const Choice& c, i64 V, float* v) {
  for (i64 at = 0; at < kMaxBadWordIds && words[at] > 0;) {
    const i64 n = words[at];
    const int32_t* word = words + at + 1;
    at += 1 + n;
    if (at > kMaxBadWordIds || n - 1 > c.position) continue;
    i64 same = 0;
    while (same < n - 1 && c.ids[c.position - (n - 1) + same] == word[same]) same++;
    if (same == n - 1 && in_vocabulary(word[n - 1], V)) v[word[n - 1]] = -kInfinity;
  }
}

// min_tokens: ids that would end the sequence are forbidden until enough are known.
static void forbid_ends(const int32_t* ids, i64 n, i64 V, float* v) {
  for (i64 k = 0; k < n && k < kMaxStopIds; k++)
    if (in_vocabulary(ids[k], V)) v[ids[k]] = -kInfinity;
}

// repetition_penalty: once for every id of prompt and output. `count` [V] needs no initial value.
static void penalize_repetition(const Choice& c, float penalty, i64 V, uint32_t* count, float* v) {
  for (i64 k = 0; k < c.position; k++)
    if (in_vocabulary(c.ids[k], V)) count[c.ids[k]] = 0;
  for (i64 k = 0; k < c.position; k++) {
    const int32_t id = c.ids[k];
    if (!in_vocabulary(id, V) || count[id]) continue;
    count[id] = 1;
    const float x = v[id] > 0.0f ? v[id] / penalty : v[id] * penalty;
    v[id] = x < 3.4e38f ? x : 3.4e38f;  // never +inf: a huge logit over a small penalty
  }
}

// frequency_penalty per occurrence and presence_penalty once, for ids of the output.
static void penalize_presence(const Choice& c, float presence, float frequency, i64 V, uint32_t* count, float* v) {
  for (i64 k = c.prompt; k < c.position; k++)
    if (in_vocabulary(c.ids[k], V)) count[c.ids[k]] = 0;
  for (i64 k = c.prompt; k < c.position; k++)
    if (in_vocabulary(c.ids[k], V)) count[c.ids[k]]++;
  for (i64 k = c.prompt; k < c.position; k++) {
    const int32_t id = c.ids[k];
    if (!in_vocabulary(id, V) || !count[id]) continue;
    v[id] = v[id] - frequency * static_cast<float>(count[id]) - presence;
    count[id] = 0;
  }
}

// Whether a parameter changes values at this position, so that the row has to be copied.
static bool changes(const Choice& c) {
  const Slots& s = *c.slots;
  const i64 n = c.slot;
  return s.masked[n] || s.biases[n] > 0 || s.bad_word[n * kMaxBadWordIds] > 0 ||
         (c.position < s.min_known[n] && s.stop_ids[n] > 0) || s.repetition_penalty[n] != 1.0f ||
         ((s.presence_penalty[n] != 0.0f || s.frequency_penalty[n] != 0.0f) && c.position > c.prompt);
}

// All of them, on a copy of the row.
static void change(const Choice& c, i64 V, uint32_t* count, float* v) {
  const Slots& s = *c.slots;
  const i64 n = c.slot;
  if (s.masked[n]) allow(s.mask + n * s.V32, V, v);
  bias(s.bias_id + n * kMaxLogitBias, s.bias_value + n * kMaxLogitBias, s.biases[n], V, v);
  forbid_words(s.bad_word + n * kMaxBadWordIds, c, V, v);
  if (c.position < s.min_known[n]) forbid_ends(s.stop_id + n * kMaxStopIds, s.stop_ids[n], V, v);
  if (s.repetition_penalty[n] != 1.0f) penalize_repetition(c, s.repetition_penalty[n], V, count, v);
  if (s.presence_penalty[n] != 0.0f || s.frequency_penalty[n] != 0.0f)
    penalize_presence(c, s.presence_penalty[n], s.frequency_penalty[n], V, count, v);
}

// How values become weights: e^((value - most) / temperature), 0 where that is below min_p (most itself weighs exactly 1).
// Below kLeast a weight is 0 too, and exp never makes a denormal: those cost AVX2 30 ns a vector (a row with half of its
// 49,152 ids forbidden took 105 us, now 44).
struct Weighing {
  static constexpr float kLeast = 1.7e-38f;  // just above e^-87, the least that exp is asked for
  float most, per_temperature, min_p;
  F operator()(F value) const {
    const F w = exp(max(mul(sub(value, set1(most)), set1(per_temperature)), set1(-87.0f)));
    return select(ge(w, set1(min_p > kLeast ? min_p : kLeast)), w, zero());
  }
  // 1 where the id is kept.
  F count(F value) const {
    const F one = set1(1.0f);
    return min_p > 0.0f ? select(gt((*this)(value), zero()), one, zero()) : select(gt(value, set1(-kInfinity)), one, zero());
  }
};

// Candidates: ids and their weights, in ascending ids.
struct Candidates {
  int32_t* ids;
  float* weights;
  i64 capacity, n;
};

// Ids with lo < value <= hi that min_p keeps. False if they do not fit.
static bool collect(const Values& row, const Weighing& weigh, float lo, float hi, Candidates& out) {
  out.n = 0;
  alignas(64) float weight[16];
  for (i64 b = 0; b < row.blocks; b++) {
    if (!any(gt(load(row.maxima + b * 16), set1(lo)))) continue;
    for (i64 i = b * kBlockIds, end = i + 16 * vectors_of(row.V, b); i < end; i += 16) {
      const F value = values_at(row.v, i, row.V);
      uint32_t hit = bits(gt(value, set1(lo))) & bits(le(value, set1(hi)));
      if (!hit) continue;
      const F w = weigh(value);
      if (weigh.min_p > 0.0f) hit &= bits(gt(w, zero()));
      store(weight, w);
      for (; hit; hit &= hit - 1) {
        const int lane = __builtin_ctz(hit);
        if (out.n == out.capacity) return false;
        out.ids[out.n] = static_cast<int32_t>(i + lane);
        out.weights[out.n++] = weight[lane];
      }
    }
  }
  return true;
}

// Only those at or before the cut stay.
static void trim(const Values& row, Cut cut, Candidates& list) {
  i64 left = 0;
  for (i64 k = 0; k < list.n; k++) {
    const float value = row.v[list.ids[k]];
    if (value < cut.value || (value == cut.value && list.ids[k] > cut.id)) continue;
    list.ids[left] = list.ids[k];
    list.weights[left++] = list.weights[k];
  }
  list.n = left;
}

// The weight (COUNT: the number) of the ids that min_p keeps: of all, and of those above each of four values. Added up in
// the order of `total` in sample.cc.
struct Mass {
  double whole, above[4];
};
template <bool COUNT>
static Mass masses(const Values& row, const Weighing& weigh, const float* bounds) {
  Mass mass = {0, {0, 0, 0, 0}};
  for (i64 b = 0; b < row.blocks; b++) {
    F whole = zero(), above[4] = {zero(), zero(), zero(), zero()};
    for (i64 i = b * kBlockIds, end = i + 16 * vectors_of(row.V, b); i < end; i += 16) {
      const F value = values_at(row.v, i, row.V), w = COUNT ? weigh.count(value) : weigh(value);
      whole = add(whole, w);
      for (int k = 0; k < 4; k++) above[k] = add(above[k], select(gt(value, set1(bounds[k])), w, zero()));
    }
    mass.whole += reduce_add(whole);
    for (int k = 0; k < 4; k++) mass.above[k] += reduce_add(above[k]);
  }
  return mass;
}

// The first id at which the mass of the row reaches `target` (SHARE: that share of the whole mass). Four values at a time
// narrow the interval that holds it until its ids fit the list: at first, in temperatures below the maximum, where nuclei of
// peaked to flat rows end; then evenly. A round costs as much as some 1,000 ids in the list do (flat row of 49,152 ids, top_p
// 0.9, avx512: 223 us with a list of 8,192, 100 us with 1,024). Dropped: bounds around the interpolated place of the target
// (normal rows take 3 to 6 rounds so, 3 to 5 evenly). Equal values cannot be told apart: after kRounds the list takes all.
constexpr i64 kNarrow = 1024;
constexpr int kRounds = 8;
template <bool COUNT, bool SHARE>
static Cut narrow(const Values& row, const Weighing& weigh, double target, Candidates& list) {
  const float unit = 1.0f / weigh.per_temperature;
  float bounds[4] = {row.most - 2 * unit, row.most - 5 * unit, row.most - 9 * unit, row.most - 14 * unit};
  float lo = -kInfinity, hi = row.most;
  double before = 0;  // mass above hi
  const i64 capacity = list.capacity;
  for (int round = 0;; round++) {
    const Mass mass = masses<COUNT>(row, weigh, bounds);
    if (SHARE && round == 0) target *= mass.whole;
    for (int k = 0; k < 4 && lo < bounds[k]; k++) {
      if (mass.above[k] >= target) {
        lo = bounds[k];
      } else if (bounds[k] < hi) {
        hi = bounds[k];
        before = mass.above[k];
      }
    }
    list.capacity = round < kRounds && capacity > kNarrow ? kNarrow : capacity;
    const bool fits = collect(row, weigh, lo, hi, list);
    list.capacity = capacity;
    if (fits) break;
    const float low = lo > -kInfinity ? lo : hi - 90 * unit;  // e^-90: less than a weight can be
    for (int k = 0; k < 4; k++) bounds[k] = hi + (low - hi) * (0.2f * static_cast<float>(k + 1));
  }
  if (list.n == 0) return kEverything;  // nothing is left below `hi`: all are kept
  return descend(row.v, list.ids, COUNT ? nullptr : list.weights, list.n, before, target);
}

// top_k: the cut after the k-th id that min_p keeps. 0 < k < V. `list` holds what is kept, unless `listed` is false.
static Cut top_k(const Values& row, const Weighing& weigh, i64 k, Candidates& list, float* tops, bool listed) {
  Cut cut;
  if (k <= row.blocks * 2) {
    const float bound = reached_by(row, k, list.ids, tops);
    cut = {bound, 0x7fffffff};
    collect(row, weigh, bound > -kInfinity ? below(bound) : bound, kInfinity, list);
    if (list.n <= k) return cut;
    cut = descend(row.v, list.ids, nullptr, list.n, 0.0, static_cast<double>(k));
  } else {
    cut = narrow<true, false>(row, weigh, static_cast<double>(k), list);
  }
  if (!listed) return cut;
  collect(row, weigh, cut.value > -kInfinity ? below(cut.value) : cut.value, kInfinity, list);
  trim(row, cut, list);
  return cut;
}

// top_p over the whole row: ids are kept while the weight of those before them is below `share` of the whole.
static Cut top_p(const Values& row, const Weighing& weigh, float share, Candidates& list) {
  return narrow<false, true>(row, weigh, share, list);
}

// top_p over what top_k kept.
static Cut top_p_of(const Values& row, float p, Candidates& list) {
  double whole = 0;
  for (i64 k = 0; k < list.n; k++) whole += list.weights[k];
  return descend(row.v, list.ids, list.weights, list.n, 0.0, static_cast<double>(p) * whole);
}

}  // namespace
OCTAVO_END
