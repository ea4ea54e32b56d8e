// Weights of ids, and the place in an order of ids where a weight or a number is reached, without a sort. Included by
// sample_filters.h alone. Knows a row and numbers; no parameter, no slot.
#pragma once
#include "sample_select.h"

OCTAVO_BEGIN
namespace {

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
  F operator()(F value, i64) const { return (*this)(value); }
  // 1 where the id is kept.
  F count(F value) const {
    const F one = set1(1.0f);
    return min_p > 0.0f ? select(gt((*this)(value), zero()), one, zero()) : select(gt(value, set1(-kInfinity)), one, zero());
  }
};

static inline Weighing plain(const Values& row) { return {row.most, 1.0f, 0.0f}; }

// Weights of the values at ids from i on: read where an earlier pass has left them in `at`, else computed, and left there if
// there is such room. exp is most of what a pass over a row costs, and filters only take ids away.
struct Weights {
  Weighing weigh;
  float* at = nullptr;
  bool known = false;
  F operator()(F value, i64 i) const {
    if (known) return select(gt(value, set1(-kInfinity)), load(at + i), zero());
    const F w = weigh(value);
    if (at) store(at + i, w);
    return w;
  }
};
static inline Weights weights_of(const Values& row) { return {plain(row), row.weights, row.weighed}; }

// Candidates: ids and their weights, in ascending ids.
struct Candidates {
  int32_t* ids;
  float* weights;
  i64 capacity, n;
};

constexpr i64 kNarrow = 1024;
constexpr int kRounds = 8;

// Ids with lo < score <= hi that min_p keeps. False if they do not fit.
template <class SCORE>
static bool collect(const Values& row, const SCORE& score, const Weighing& weigh, float lo, float hi, Candidates& out) {
  out.n = 0;
  alignas(64) float weight[16];
  for (i64 b = 0; b < row.blocks; b++) {
    if (!any(gt(score.most(load(row.maxima + b * 16)), set1(lo)))) continue;
    for (i64 i = b * kBlockIds, end = i + 16 * vectors_of(row.V, b); i < end; i += 16) {
      const F value = values_at(row.v, i, row.V), rank = score(value);
      uint32_t hit = bits(gt(rank, set1(lo))) & bits(le(rank, set1(hi)));
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

// The weight (COUNT: the number) of the ids that min_p keeps: of all, and of those above each of four scores. Added up in
// the order of `total`.
struct Mass {
  double whole, above[4];
};
template <bool COUNT, class SCORE>
static Mass masses(const Values& row, const SCORE& score, const Weights& weights, const float* bounds) {
  Mass mass = {0, {0, 0, 0, 0}};
  for (i64 b = 0; b < row.blocks; b++) {
    if (!alive(row, b)) continue;
    F whole = zero(), above[4] = {zero(), zero(), zero(), zero()};
    for (i64 i = b * kBlockIds, end = i + 16 * vectors_of(row.V, b); i < end; i += 16) {
      const F value = values_at(row.v, i, row.V), rank = score(value);
      const F w = COUNT ? weights.weigh.count(value) : weights(value, i);
      whole = add(whole, w);
      for (int k = 0; k < 4; k++) above[k] = add(above[k], select(gt(rank, set1(bounds[k])), w, zero()));
    }
    mass.whole += reduce_add(whole);
    for (int k = 0; k < 4; k++) mass.above[k] += reduce_add(above[k]);
  }
  return mass;
}

// Scores and weights of some ids; n is a multiple of 16, what fills up has the score -inf and the weight 0.
struct Sample {
  float *scores, *weights;
  i64 n;
};

// Those with lo < score <= hi: the weight above them, and their own.
struct Span {
  float lo, hi;
  double above, inside;
};

static void weigh_above(const Sample& sample, const float* bounds, double* above) {
  for (int k = 0; k < 4; k++) above[k] = 0;
  for (i64 from = 0; from < sample.n; from += kBlockIds) {
    F sums[4] = {zero(), zero(), zero(), zero()};
    for (i64 i = from, end = from + kBlockIds < sample.n ? from + kBlockIds : sample.n; i < end; i += 16) {
      const F rank = load(sample.scores + i), w = load(sample.weights + i);
      for (int k = 0; k < 4; k++) sums[k] = add(sums[k], select(gt(rank, set1(bounds[k])), w, zero()));
    }
    for (int k = 0; k < 4; k++) above[k] += reduce_add(sums[k]);
  }
}

// The fifth of a span in which `target` is reached. before: the weight above all of the sample.
static void divide(const Sample& sample, double before, double target, Span& span) {
  float bounds[4];
  double above[4], low = span.above + span.inside;
  for (int k = 0; k < 4; k++) bounds[k] = span.hi + (span.lo - span.hi) * (0.2f * static_cast<float>(k + 1));
  weigh_above(sample, bounds, above);
  for (int k = 0; k < 4; k++) {
    if (before + above[k] >= target) {
      span.lo = bounds[k];
      low = before + above[k];
      break;
    }
    span.hi = bounds[k];
    span.above = before + above[k];
  }
  span.inside = low - span.above;
}

// Where, by a sample of one vector of each block, `target` (SHARE: that share of the whole) is reached: between `lo` and `hi`
// but for one row in hundreds. False for rows whose weight is in few ids, which a sample does not know and rounds find soon.
constexpr double kFlat = 1000;  // weights of 1 that a row must be worth, where its greatest is 1
constexpr double kDeviations = 3;
template <bool COUNT, bool SHARE, class SCORE>
static bool guess(const Values& row, const SCORE& score, const Weights& weights, double target, const Candidates& list, Span& span) {
  Sample sample = {list.weights, list.weights + row.blocks * 16, 0};
  i64 vectors = 0;
  F sum = zero(), squares = zero(), top = set1(-kInfinity), bottom = set1(kInfinity);
  for (i64 b = 0; b < row.blocks; b++) {
    if (!alive(row, b)) continue;
    const i64 n = vectors_of(row.V, b), i = b * kBlockIds + 16 * (5 * b % n);
    const F value = values_at(row.v, i, row.V), rank = score(value);
    const F w = COUNT ? weights.weigh.count(value) : weights(value, i);
    store(sample.scores + sample.n, rank);
    store(sample.weights + sample.n, w);
    sum = add(sum, w);
    squares = fma(w, w, squares);
    top = max(top, rank);
    bottom = min(bottom, select(gt(w, zero()), rank, set1(kInfinity)));
    vectors += n;
    sample.n += 16;
  }
  const double whole = reduce_add(sum), times = 16.0 * static_cast<double>(vectors) / static_cast<double>(sample.n + 1);
  if (!(whole * times >= kFlat)) return false;
  const double goal = SHARE ? target * whole : target / times, q = goal / whole;
  if (!(q < 1)) return false;
  const double off = kDeviations * __builtin_sqrt(q * (1 - q) * reduce_add(squares)) + 1;
  span = {below(-reduce_max(neg(bottom))), reduce_max(top), 0, whole};
  for (int k = 0; k < kRounds && span.inside > off; k++) divide(sample, 0, goal, span);
  float step = span.hi - span.lo;
  bool high = goal <= off, low = goal + off >= whole;
  if (high) span.hi = kInfinity;
  if (low) span.lo = -kInfinity;
  for (int k = 0; k < kRounds && !(high && low); k++, step *= 4) {
    const float bounds[4] = {span.hi + step, span.hi + 2 * step, span.lo - step, span.lo - 2 * step};
    double above[4];
    weigh_above(sample, bounds, above);
    for (int side = 0; side < 2 && !high; side++)
      if (above[side] <= goal - off) span.hi = bounds[side], high = true;
    for (int side = 2; side < 4 && !low; side++)
      if (above[side] >= goal + off) span.lo = bounds[side], low = true;
  }
  return high && low;
}

// The ids of a span into the list, with the row's whole weight and the span's; their scores behind the list's weights, both
// filled up to whole vectors. One pass. False if they do not fit.
template <bool COUNT, class SCORE>
static bool gather(const Values& row, const SCORE& score, const Weights& weights, Span& span, Candidates& list, double* whole) {
  const i64 most = list.capacity / 2 - 16;
  float* ids = reinterpret_cast<float*>(list.ids);
  const F lo = set1(span.lo), hi = set1(span.hi);
  double reached = 0;
  list.n = 0;
  *whole = span.above = 0;
  for (i64 b = 0; b < row.blocks; b++) {
    if (!alive(row, b)) continue;
    F all = zero(), to_lo = zero(), to_hi = zero();
    for (i64 i = b * kBlockIds, end = i + 16 * vectors_of(row.V, b); i < end; i += 16) {
      const F value = values_at(row.v, i, row.V), rank = score(value);
      const F w = COUNT ? weights.weigh.count(value) : weights(value, i);
      const M above = gt(rank, hi), within = gt(rank, lo);
      all = add(all, w);
      to_hi = add(to_hi, select(above, w, zero()));
      to_lo = add(to_lo, select(within, w, zero()));
      const M hit = {static_cast<uint16_t>(bits(within) & ~bits(above))};
      if (list.n > most) return false;
      list.n += compress(ids + list.n, as_f(add_i(iota(), seti(static_cast<int32_t>(i)))), hit);
    }
    *whole += reduce_add(all);
    span.above += reduce_add(to_hi);
    reached += reduce_add(to_lo);
  }
  span.inside = reached - span.above;
  float values[16], *scores = list.weights + list.capacity / 2;
  for (i64 k = 0; k < list.n; k += 16) {
    for (i64 lane = 0; lane < 16; lane++) values[lane] = k + lane < list.n ? row.v[list.ids[k + lane]] : -kInfinity;
    const F value = load(values);
    store(scores + k, score(value));
    store(list.weights + k, COUNT ? weights.weigh.count(value) : weights.weigh(value));
  }
  return true;
}

// The gathered ids thinned out to some hundred around `target`.
static void thin(Span& span, Candidates& list, double target) {
  const Sample sample = {list.weights + list.capacity / 2, list.weights, (list.n + 15) / 16 * 16};
  F bottom = set1(kInfinity), top = set1(-kInfinity);
  for (i64 k = 0; k < sample.n; k += 16) {
    const F rank = load(sample.scores + k);
    top = max(top, rank);
    bottom = min(bottom, select(gt(rank, set1(-kInfinity)), rank, set1(kInfinity)));
  }
  span.lo = below(-reduce_max(neg(bottom)));
  span.hi = reduce_max(top);
  const double before = span.above;
  for (double left = static_cast<double>(list.n); left > 256; left *= 0.2) divide(sample, before, target, span);
  float* ids = reinterpret_cast<float*>(list.ids);
  list.n = 0;
  for (i64 k = 0; k < sample.n; k += 16) {
    const F rank = load(sample.scores + k);
    const M hit = {static_cast<uint16_t>(bits(gt(rank, set1(span.lo))) & bits(le(rank, set1(span.hi))))};
    const F w = load(sample.weights + k), id = load(ids + k);
    compress(list.weights + list.n, w, hit);
    list.n += compress(ids + list.n, id, hit);
  }
}

// The first id of an order, whose highest score is at most `top`, at which the mass of the row reaches `target` (SHARE: that
// share of the whole mass). In flat rows a sample tells where that is, and one pass gathers the ids there (selection from a
// sample: Floyd and Rivest, 1975). Else, and where the sample was wrong, four scores at a time narrow the interval that holds
// it until its ids fit the list: at first, in temperatures below the maximum, where nuclei of peaked rows end; then evenly. A
// round costs as much as some 1,000 ids in the list do (flat row of 49,152 ids, top_p 0.9, avx512: 223 us with a list of
// 8,192, 100 us with 1,024). Equal values cannot be told apart: after kRounds the list takes all.
template <bool COUNT, bool SHARE, class SCORE>
static Cut narrow(const Values& row, const SCORE& score, float top, Weights weights, double target, Candidates& list) {
  Span span;
  double whole = 0;
  if (guess<COUNT, SHARE>(row, score, weights, target, list, span) && gather<COUNT>(row, score, weights, span, list, &whole)) {
    weights.known = !COUNT && weights.at;
    const double goal = SHARE ? target * whole : target;
    if (list.n > 0 && span.above < goal && goal <= span.above + span.inside) {
      thin(span, list, goal);
      return descend(row.v, score, list.ids, COUNT ? nullptr : list.weights, list.n, span.above, goal);
    }
  }
  const float unit = 1.0f / weights.weigh.per_temperature;
  float bounds[4] = {top - 2 * unit, top - 5 * unit, top - 9 * unit, top - 14 * unit};
  float lo = -kInfinity, hi = top;
  double before = 0;  // mass above hi
  const i64 capacity = list.capacity;
  for (int round = 0;; round++) {
    const Mass mass = masses<COUNT>(row, score, weights, bounds);
    weights.known = !COUNT && weights.at;
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
    const bool fits = collect(row, score, weights.weigh, lo, hi, list);
    list.capacity = capacity;
    if (fits) break;
    const float low = lo > -kInfinity ? lo : hi - 90 * unit;  // e^-90: less than a weight can be
    for (int k = 0; k < 4; k++) bounds[k] = hi + (low - hi) * (0.2f * static_cast<float>(k + 1));
  }
  if (list.n == 0) return kEverything;  // nothing is left below `hi`: all are kept
  return descend(row.v, score, list.ids, COUNT ? nullptr : list.weights, list.n, before, target);
}

}  // namespace
OCTAVO_END
