// One function per sampling parameter that keeps some ids of a row, as cuts through an order. Included by sample_chain.h
// alone. They know a row and numbers; nothing of slots, positions, threads or results.
//
// top_k, top_p and typical_p give a Cut, so that ties are settled by the id and a top_k of k keeps exactly k ids; min_p is
// part of an id's weight. Nothing is sorted; see sample_select.h.
#pragma once
#include "sample_changes.h"
#include "sample_narrow.h"
#include "sample_powers.h"

OCTAVO_BEGIN
namespace {

// top_k: the cut after the k-th id that min_p keeps. 0 < k < V. `list` holds what is kept, unless `listed` is false.
static Cut top_k(const Values& row, const Weighing& weigh, i64 k, Candidates& list, float* tops, bool listed) {
  Cut cut;
  if (k <= row.blocks * 2) {
    const float bound = reached_by(row, k, list.ids, tops);
    cut = {bound, 0x7fffffff};
    collect(row, ByValue{}, weigh, bound > -kInfinity ? below(bound) : bound, kInfinity, list);
    if (list.n <= k) return cut;
    cut = descend(row.v, ByValue{}, list.ids, nullptr, list.n, 0.0, static_cast<double>(k));
  } else {
    cut = narrow<true, false>(row, ByValue{}, row.most, Weights{weigh}, static_cast<double>(k), list);
  }
  if (!listed) return cut;
  collect(row, ByValue{}, weigh, cut.value > -kInfinity ? below(cut.value) : cut.value, kInfinity, list);
  trim(row, cut, list);
  return cut;
}

// top_p over the whole row: ids are kept while the weight of those before them is below `share` of the whole.
static Cut top_p(const Values& row, const Weights& weights, float share, Candidates& list) {
  return narrow<false, true>(row, ByValue{}, row.most, weights, share, list);
}

// top_p over what top_k kept.
static Cut top_p_of(const Values& row, float p, Candidates& list) {
  double whole = 0;
  for (i64 k = 0; k < list.n; k++) whole += list.weights[k];
  return descend(row.v, ByValue{}, list.ids, list.weights, list.n, 0.0, static_cast<double>(p) * whole);
}

// The sum of weights at or before the cut; sums [blocks] gets those of the blocks.
template <class WEIGH>
static double total(const Values& row, const WEIGH& weigh, Cut cut, float* sums) {
  double whole = 0;
  for (i64 b = 0; b < row.blocks; b++) {
    sums[b] = 0.0f;
    if (!alive(row, b, cut.value)) continue;
    F sum = zero();
    for (i64 i = b * kBlockIds, end = i + 16 * vectors_of(row.V, b); i < end; i += 16) {
      const F value = values_at(row.v, i, row.V);
      sum = add(sum, kept(cut, value, i, weigh(value, i), zero()));
    }
    sums[b] = reduce_add(sum);
    whole += sums[b];
  }
  return whole;
}

// The id at which the cumulative weight passes u * *whole, which is set to the total.
template <class WEIGH>
static int32_t pick(const Values& row, const WEIGH& weigh, Cut cut, double u, float* sums, double* whole) {
  *whole = total(row, weigh, cut, sums);
  const double point = u * *whole;
  double before = 0;
  i64 block = -1;
  for (i64 b = 0; b < row.blocks; b++) {
    if (sums[b] == 0.0f) continue;
    block = b;
    if (before + sums[b] > point) break;
    before += sums[b];
  }
  if (block < 0) return -1;
  int32_t last = -1;
  alignas(64) float weight[16];
  for (i64 i = block * kBlockIds, end = i + 16 * vectors_of(row.V, block); i < end; i += 16) {
    const F value = values_at(row.v, i, row.V);
    store(weight, kept(cut, value, i, weigh(value, i), zero()));
    for (int lane = 0; lane < 16; lane++) {
      if (weight[lane] == 0.0f) continue;
      last = static_cast<int32_t>(i + lane);
      before += weight[lane];
      if (before > point) return last;
    }
  }
  return last;
}

// The filters of a chain: each acts on what the ones before it left, with weights e^(value - most).


// What `weights` say of a row: their sum, the mean of value - most under them, and how many ids there are.
struct Spread {
  double whole, mean, ids;
  double entropy() const { return natural_log(whole) - mean; }  // -sum p ln p, with ln p = (value - most) - ln whole
};
static Spread spread(Values& row) {
  const Weights weights = weights_of(row);
  Spread made = {0, 0, 0};
  for (i64 b = 0; b < row.blocks; b++) {
    if (!alive(row, b)) continue;
    F whole = zero(), moment = zero(), ids = zero();
    for (i64 i = b * kBlockIds, end = i + 16 * vectors_of(row.V, b); i < end; i += 16) {
      const F value = values_at(row.v, i, row.V), w = weights(value, i);
      whole = add(whole, w);
      moment = add(moment, mul(w, max(sub(value, set1(row.most)), set1(-90.0f))));  // 0 * -90, never 0 * -inf
      ids = add(ids, weights.weigh.count(value));
    }
    made.whole += reduce_add(whole);
    made.mean += reduce_add(moment);
    made.ids += reduce_add(ids);
  }
  row.weighed = row.weights != nullptr;
  made.mean /= made.whole;
  return made;
}

// top_n_sigma (Tang et al.: Top-n sigma, 2024): the least value that stays is n standard deviations below the greatest one.
static Cut top_n_sigma(const Values& row, float n) {
  double sum = 0, squares = 0, ids = 0, mean = 0;
  for (int pass = 0; pass < 2; pass++) {  // the second around the mean: squares of what is far from 0 would cancel
    const F centre = set1(row.most + static_cast<float>(mean));
    for (i64 b = 0; b < row.blocks; b++) {
      if (!alive(row, b)) continue;
      F s = zero(), count = zero();
      for (i64 i = b * kBlockIds, end = i + 16 * vectors_of(row.V, b); i < end; i += 16) {
        const F value = values_at(row.v, i, row.V), d = sub(value, centre);
        const M there = gt(value, set1(-kInfinity));
        s = add(s, select(there, pass == 0 ? d : mul(d, d), zero()));
        if (pass == 0) count = add(count, select(there, set1(1.0f), zero()));
      }
      (pass == 0 ? sum : squares) += reduce_add(s);
      if (pass == 0) ids += reduce_add(count);
    }
    mean = sum / ids;
  }
  const double sigma = __builtin_sqrt(squares / ids);
  return {static_cast<float>(static_cast<double>(row.most) - static_cast<double>(n) * sigma), 0x7fffffff};
}

// typical_p (Meister et al.: Locally typical sampling, 2022): ids whose surprise is nearest to the entropy stay, until their
// weight reaches the share. |-ln p - entropy| = |(value - most) - mean|: the centre is the mean value.
static Cut typical_p(const Values& row, ByNearness near, float share, Candidates& list) {
  return narrow<false, true>(row, near, 0.0f, weights_of(row), share, list);
}
static ByNearness typical_centre(Values& row) {
  return {static_cast<float>(static_cast<double>(row.most) + spread(row).mean)};
}

// XTC (exclude top choices, p-e-w in oobabooga/text-generation-webui #6335): the last id, in the total order, of those whose
// probability reaches the threshold; all ids before it leave. The value is -inf if fewer than two reach it.
static Cut xtc(Values& row, float threshold, float* sums) {
  const Weighing weigh = plain(row);
  const float least = static_cast<float>(static_cast<double>(threshold) * total(row, weights_of(row), kEverything, sums));
  row.weighed = row.weights != nullptr;
  Cut last = {kInfinity, -1};
  i64 reached = 0;
  for (i64 b = 0; b < row.blocks; b++) {
    if (!alive(row, b) || !any(ge(weigh(load(row.maxima + b * 16)), set1(least)))) continue;
    for (i64 i = b * kBlockIds, end = i + 16 * vectors_of(row.V, b); i < end; i += 16) {
      const F value = values_at(row.v, i, row.V);
      uint32_t hit = bits(ge(weigh(value), set1(least))) & bits(gt(value, set1(-kInfinity)));
      for (; hit; hit &= hit - 1) {
        const i64 id = i + __builtin_ctz(hit);
        reached++;
        if (row.v[id] <= last.value) last = {row.v[id], static_cast<int32_t>(id)};
      }
    }
  }
  return reached < 2 ? Cut{-kInfinity, -1} : last;
}

// The temperature between `given` - range and `given` + range that the entropy asks for, as a share of the greatest one that
// as many ids can have, to the power of the exponent (kalomaze, in llama.cpp #4972). At least kColdest.
constexpr float kColdest = 0.01f;
static float dynamic_temperature(Values& row, float given, float range, float exponent) {
  const Spread s = spread(row);
  if (s.ids < 2) return given;
  const double low = given > range ? static_cast<double>(given) - range : 0.0, high = static_cast<double>(given) + range;
  double share = s.entropy() / natural_log(s.ids);
  share = share < 1e-300 ? 1e-300 : share > 1.0 ? 1.0 : share;
  const float made = static_cast<float>(low + (high - low) * exponential(-exponent * natural_log(1.0 / share)));
  return made > kColdest ? made : kColdest;
}

// Mirostat 2 (Basu et al.: Mirostat, ICLR 2021): the least weight that stays, that of a surprise of mu bits. Above 1 nothing
// would stay: then the first id does.
static float mirostat_least(Values& row, float mu, float* sums) {
  const double least = total(row, weights_of(row), kEverything, sums) * exponential(-static_cast<double>(mu) * kLn2);
  row.weighed = row.weights != nullptr;
  return least < 2.0 ? static_cast<float>(least) : 2.0f;
}

// Mirostat 1: how many ids stay, from the exponent of Zipf's law that the n most likely values [n], descending, show.
static i64 mirostat_count(const float* top, i64 n, i64 vocabulary, float mu) {
  double products = 0, squares = 0;
  for (i64 i = 0; i + 1 < n; i++) {
    const double t = natural_log(static_cast<double>(i + 2) / static_cast<double>(i + 1));
    products += t * (static_cast<double>(top[i]) - static_cast<double>(top[i + 1]));
    squares += t * t;
  }
  if (!(products > 0)) return vocabulary;  // flat
  const double s = products / squares, e = s - 1.0, log_n = natural_log(static_cast<double>(vocabulary));
  const double shrink = 1.0 - exponential(-e * log_n);
  const double share = e < 1e-9 && e > -1e-9 ? 1.0 / log_n : e / shrink;  // e / (1 - N^-e) is above 0 for every e
  const double log_share = share >= 1.0 ? natural_log(share) : -natural_log(1.0 / share);
  const double k = exponential((log_share + static_cast<double>(mu) * kLn2) / s);
  return k < 1.0 ? 1 : k < static_cast<double>(vocabulary) ? static_cast<i64>(k) : vocabulary;
}

}  // namespace
OCTAVO_END
