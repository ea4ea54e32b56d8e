// Sampling parameters that change values in place, one function each, in the order of sample.cc. Included by
// sample_filters.h alone. They know a row, one slot and its position; nothing of threads or results.
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

// The first of the last n ids before the position; n < 0: all of them.
static inline i64 window_start(const Choice& c, i64 n) { return n < 0 || n > c.position ? 0 : c.position - n; }

// repetition_penalty: once for every id of prompt and output, from `first` on. `count` [V] needs no initial value.
static void penalize_repetition(const Choice& c, i64 first, float penalty, i64 V, uint32_t* count, float* v) {
  for (i64 k = first; k < c.position; k++)
    if (in_vocabulary(c.ids[k], V)) count[c.ids[k]] = 0;
  for (i64 k = first; k < c.position; k++) {
    const int32_t id = c.ids[k];
    if (!in_vocabulary(id, V) || count[id]) continue;
    count[id] = 1;
    const float x = v[id] > 0.0f ? v[id] / penalty : v[id] * penalty;
    v[id] = x < 3.4e38f ? x : 3.4e38f;  // never +inf: a huge logit over a small penalty
  }
}

// frequency_penalty per occurrence and presence_penalty once, for ids of the output from `first` on.
static void penalize_presence(const Choice& c, i64 first, float presence, float frequency, i64 V, uint32_t* count, float* v) {
  if (first < c.prompt) first = c.prompt;
  for (i64 k = first; k < c.position; k++)
    if (in_vocabulary(c.ids[k], V)) count[c.ids[k]] = 0;
  for (i64 k = first; k < c.position; k++)
    if (in_vocabulary(c.ids[k], V)) count[c.ids[k]]++;
  for (i64 k = first; k < c.position; k++) {
    const int32_t id = c.ids[k];
    if (!in_vocabulary(id, V) || !count[id]) continue;
    v[id] = v[id] - frequency * static_cast<float>(count[id]) - presence;
    count[id] = 0;
  }
}

// repetition_penalty, then frequency_penalty and presence_penalty, over the last repeat_last_n ids.
static void penalize(const Choice& c, i64 V, uint32_t* count, float* v) {
  const Slots& s = *c.slots;
  const i64 n = c.slot, first = window_start(c, s.repeat_last_n[n]);
  if (s.repetition_penalty[n] != 1.0f) penalize_repetition(c, first, s.repetition_penalty[n], V, count, v);
  if (s.presence_penalty[n] != 0.0f || s.frequency_penalty[n] != 0.0f)
    penalize_presence(c, first, s.presence_penalty[n], s.frequency_penalty[n], V, count, v);
}

// How many of the n ids that end before `a` and before `b` are the same, read backwards.
static i64 common_tail(const int32_t* a, const int32_t* b, i64 n) {
  i64 same = 0;
  for (; same + 16 <= n; same += 16) {
    const uint32_t equal = bits(eq_i(loadi(a - same - 16), loadi(b - same - 16)));
    if (equal != 0xffff) return same + __builtin_clz(~equal << 16);
  }
  while (same < n && a[-1 - same] == b[-1 - same]) same++;
  return same;
}

// DRY ("don't repeat yourself", p-e-w in oobabooga/text-generation-webui #5637): an id that would lengthen a repetition of
// n >= allowed ids of the output costs multiplier * base^(n - allowed), at most kLongest steps of the power (base 1.75:
// 3e15, which forbids an id as surely as more would). The end of the output up to its last breaker is what may be repeated.
// A place costs one compare where it does not repeat and 5 vectors where it does, so no table of lengths is kept: an answer of
// 8,000 ids takes 8 us, of 8,000 equal ones 30.
constexpr i64 kLongest = 64;
static void penalize_dry(const Choice& c, i64 V, uint32_t* longest, float* v) {
  const Slots& s = *c.slots;
  const i64 n = c.slot, end = c.position, allowed = s.dry_allowed_length[n];
  i64 start = window_start(c, s.dry_penalty_last_n[n]);
  if (start < c.prompt) start = c.prompt;
  const uint32_t* breaker = s.breaker + n * s.V32;
  i64 unbroken = 0;  // ids at the end that hold no breaker
  for (; unbroken < end - start && unbroken < allowed + kLongest; unbroken++) {
    const int32_t id = c.ids[end - 1 - unbroken];
    if (!in_vocabulary(id, V) || (breaker[id / 32] >> (id % 32) & 1)) break;
  }
  if (unbroken < allowed) return;
  for (i64 k = start + allowed; k < end; k++)
    if (in_vocabulary(c.ids[k], V)) longest[c.ids[k]] = 0;
  for (i64 k = start + allowed; k < end; k++) {  // ids[k] followed the repetition
    const int32_t id = c.ids[k];
    if (c.ids[k - 1] != c.ids[end - 1] || !in_vocabulary(id, V)) continue;
    const i64 most = k - start < unbroken ? k - start : unbroken;
    const i64 same = common_tail(c.ids + k, c.ids + end, most);
    if (same >= allowed && static_cast<uint32_t>(same) > longest[id]) longest[id] = static_cast<uint32_t>(same);
  }
  for (i64 k = start + allowed; k < end; k++) {
    const int32_t id = c.ids[k];
    if (!in_vocabulary(id, V) || longest[id] == 0) continue;
    double cost = s.dry_multiplier[n];
    for (i64 more = longest[id] - allowed; more > 0; more--) cost *= s.dry_base[n];
    longest[id] = 0;
    const float left = v[id] - static_cast<float>(cost < 3.4e38 ? cost : 3.4e38);
    v[id] = v[id] > -kInfinity && left < -3.4e38f ? -3.4e38f : left;  // dear, not forbidden
  }
}

// One link of a chain that changes values.
static void change_link(const Choice& c, int32_t link, i64 V, uint32_t* count, float* v) {
  if (link == S_penalties) penalize(c, V, count, v);
  if (link == S_dry) penalize_dry(c, V, count, v);
}

// A slot whose samplers are a chain (sample_chain.h).
static inline bool chained(const Choice& c) { return c.slots->chain[c.slot * kSamplerSteps] != 0; }

// The links of a chain that change values before anything is filtered; their number. No filter takes away the most likely id,
// so where that is taken (temperature 0) all of them come first.
static i64 first_changes(const Choice& c, int32_t* links) {
  const int32_t* chain = c.slots->chain + c.slot * kSamplerSteps;
  const bool greedy = c.slots->temperature[c.slot] == 0.0f;
  i64 n = 0;
  for (i64 k = 0; k < kSamplerSteps; k++) {
    if (chain[k] == S_penalties || chain[k] == S_dry) {
      links[n++] = chain[k];
    } else if (!greedy) {
      break;
    }
  }
  return n;
}

// Whether a parameter changes values at this position before anything else, so that the row has to be copied.
static bool changes(const Choice& c) {
  const Slots& s = *c.slots;
  const i64 n = c.slot;
  if (s.masked[n] || s.biases[n] > 0 || s.bad_word[n * kMaxBadWordIds] > 0) return true;
  if (c.position < s.min_known[n] && s.stop_ids[n] > 0) return true;
  int32_t links[kSamplerSteps];
  if (chained(c)) return first_changes(c, links) > 0;
  return s.repetition_penalty[n] != 1.0f ||
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
  if (!chained(c)) return penalize(c, V, count, v);
  int32_t links[kSamplerSteps];
  for (i64 k = 0, all = first_changes(c, links); k < all; k++) change_link(c, links[k], V, count, v);
}

}  // namespace
OCTAVO_END
