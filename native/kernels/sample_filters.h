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
    store_n(v + i, select(forbidden, set1(-kInfinity), load_n(v + i, V - i)), V - i);
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
struct Weighing {
  float most, per_temperature, min_p;
  F operator()(F value) const {
    const F w = exp(mul(sub(value, set1(most)), set1(per_temperature)));
    return select(ge(w, set1(min_p)), w, zero());
  }
};

// Candidates: ids and their weights, in ascending ids.
struct Candidates {
  int32_t* ids;
  float* weights;
  i64 capacity, n;
};

// Ids with lo < value <= hi and a weight of at least min_p (any weight if it is 0). False if they do not fit.
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
      hit &= bits(ge(w, set1(weigh.min_p)));
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

// top_k: the cut after the k-th id that min_p keeps. 0 < k < V. `list` holds what is kept.
static Cut top_k(const Values& row, const Weighing& weigh, i64 k, Candidates& list, float* tops) {
  const float bound = reached_by(row, k, list.ids, tops);
  const float lo = bound > -kInfinity ? below(bound) : bound;
  collect(row, weigh, lo, kInfinity, list);
  if (list.n <= k) return {bound, 0x7fffffff};
  const Cut cut = descend(row.v, list.ids, nullptr, list.n, 0.0, static_cast<double>(k));
  collect(row, weigh, below(cut.value), kInfinity, list);
  trim(row, cut, list);
  return cut;
}

// The weight of the whole row and of the ids above each of four values, in the order of `total` in sample.cc.
struct Mass {
  double whole, above[4];
};
static Mass masses(const Values& row, const Weighing& weigh, const float* bounds) {
  Mass mass = {0, {0, 0, 0, 0}};
  for (i64 b = 0; b < row.blocks; b++) {
    F whole = zero(), above[4] = {zero(), zero(), zero(), zero()};
    for (i64 i = b * kBlockIds, end = i + 16 * vectors_of(row.V, b); i < end; i += 16) {
      const F value = values_at(row.v, i, row.V), w = weigh(value);
      whole = add(whole, w);
      for (int k = 0; k < 4; k++) above[k] = add(above[k], select(gt(value, set1(bounds[k])), w, zero()));
    }
    mass.whole += reduce_add(whole);
    for (int k = 0; k < 4; k++) mass.above[k] += reduce_add(above[k]);
  }
  return mass;
}

// top_p over the whole row: ids are kept while the weight of those before them is below top_p of the whole. Four values at
// a time narrow the interval that holds the cut until at most kNarrow ids lie in it (8,192 cost about 20 us to descend); the
// first four, in temperatures below the maximum, are where nuclei of peaked to flat rows end. Values that are equal cannot
// be told apart by narrowing: after kRounds the list takes them all.
constexpr i64 kNarrow = 8192;
constexpr int kRounds = 6;
static Cut top_p(const Values& row, const Weighing& weigh, float p, Candidates& list) {
  const float unit = 1.0f / weigh.per_temperature;
  float bounds[4] = {row.most - 2 * unit, row.most - 5 * unit, row.most - 9 * unit, row.most - 14 * unit};
  float lo = -kInfinity, hi = row.most;
  double before = 0, target = 0;
  const i64 capacity = list.capacity;
  for (int round = 0;; round++) {
    const Mass mass = masses(row, weigh, bounds);
    if (round == 0) target = static_cast<double>(p) * mass.whole;
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
    const float low = lo > -kInfinity ? lo : hi - 90 * unit;  // e^-90: below 2^-126
    for (int k = 0; k < 4; k++) bounds[k] = hi + (low - hi) * (0.2f * static_cast<float>(k + 1));
  }
  if (list.n == 0) return kEverything;  // rounding: what lies above weighs the whole
  return descend(row.v, list.ids, list.weights, list.n, before, target);
}

// top_p over what top_k kept.
static Cut top_p_of(const Values& row, float p, Candidates& list) {
  double whole = 0;
  for (i64 k = 0; k < list.n; k++) whole += list.weights[k];
  return descend(row.v, list.ids, list.weights, list.n, 0.0, static_cast<double>(p) * whole);
}

}  // namespace
OCTAVO_END
