// Finding ids in a row of logits without sorting it: block maxima, the argmax, ids between two values, the id at which a
// count or a mass is reached, ranks. Included by sample_filters.h and sample.cc. Knows no parameter and no sequence.
//
// The total order is everywhere: value descending, id ascending. Everything here depends on the row alone, never on threads.
// A row is cut into blocks of 256 ids = 16 vectors. `maxima` keeps 16 lanes a block: lane l of block b is the maximum of the
// ids 256 b + 16 j + l, j < 16 (its "column"). So the scan needs no horizontal step, and a block without a lane above a
// bound is skipped. A block costs 16 loads; a row of 49,152 ids has 192 blocks and 3,072 columns.
#pragma once
#include "../simd/simd.h"

OCTAVO_BEGIN
namespace {

using namespace simd;

constexpr i64 kBlockIds = 256;
constexpr float kInfinity = __builtin_inff();

// A row and what the scan found. Ids from V on do not exist; forbidden ids have the value -inf.
struct Values {
  const float* v;       // [V]
  i64 V, blocks;        // blocks = ceil(V / 256)
  const float* maxima;  // [blocks][16]
  float most;           // the maximum; -inf if every id is forbidden
  float* weights = nullptr;  // [P] room for e^(value - most), where there is some
  bool weighed = false;      // whether they are there, for every id that is not forbidden
};

// The ids before and up to `id` among those of `value`: a cut through the total order, or another one of scores.
struct Cut {
  float value;
  int32_t id;
};
constexpr Cut kEverything = {-kInfinity, 0x7fffffff};

// Whether a block has an id that reaches `least` and is not forbidden. Values of a block that has none may be stale.
static inline bool alive(const Values& row, i64 block, float least = -kInfinity) {
  constexpr float kLowest = -3.402823466e38f;
  return any(ge(load(row.maxima + block * 16), set1(least > kLowest ? least : kLowest)));
}

static inline i64 vectors_of(i64 V, i64 block) {
  const i64 n = (V - block * kBlockIds + 15) / 16;
  return n < 16 ? n : 16;
}

// Values of the ids from i on, i < V; -inf past the end.
static inline F values_at(const float* v, i64 i, i64 V) {
  if (i + 16 <= V) return load(v + i);
  return select(mask_n(V - i), load_n(v + i, V - i), set1(-kInfinity));
}

// The other way; ids past the end are left alone.
static inline void put_values(float* v, i64 i, i64 V, F x) {
  if (i + 16 <= V) {
    store(v + i, x);
  } else {
    store_n(v + i, x, V - i);
  }
}

// Fills maxima; gives the maximum. *finite: no value is NaN or infinite (0 * x is 0 only for finite x).
static float scan(const float* v, i64 V, float* maxima, bool* finite) {
  const i64 blocks = (V + kBlockIds - 1) / kBlockIds;
  F most = set1(-kInfinity), check[2] = {zero(), zero()};
  for (i64 b = 0; b < blocks; b++) {
    F top[2] = {set1(-kInfinity), set1(-kInfinity)};
    const float* x = v + b * kBlockIds;
    if ((b + 1) * kBlockIds <= V) {
      for (int j = 0; j < 16; j += 2)
        for (int s = 0; s < 2; s++) {
          const F a = load(x + 16 * (j + s));
          check[s] = fma(a, zero(), check[s]);
          top[s] = max(top[s], a);
        }
    } else {
      for (i64 i = b * kBlockIds; i < V; i += 16) {
        check[0] = fma(load_n(v + i, V - i), zero(), check[0]);
        top[0] = max(top[0], values_at(v, i, V));
      }
    }
    top[0] = max(top[0], top[1]);
    store(maxima + b * 16, top[0]);
    most = max(most, top[0]);
  }
  *finite = bits(eq(add(check[0], check[1]), zero())) == 0xffff;
  return reduce_max(most);
}

// The first id in the total order.
static int32_t argmax(const Values& row) {
  const F most = set1(row.most);
  for (i64 b = 0; b < row.blocks; b++) {
    if (!any(eq(load(row.maxima + b * 16), most))) continue;
    for (i64 i = b * kBlockIds; i < row.V; i += 16) {
      const M hit = eq(values_at(row.v, i, row.V), most);
      if (any(hit)) return static_cast<int32_t>(i + first(hit));
    }
  }
  return -1;
}

// x where the ids from i on, whose scores are `rank`, stand before or at the cut, else `other`.
static inline F kept(Cut cut, F rank, i64 i, F x, F other) {
  const F bound = set1(cut.value);
  if (i + 15 <= cut.id) return select(ge(rank, bound), x, other);
  const F above = select(gt(rank, bound), x, other);
  if (i > cut.id) return above;
  return select(mask_n(cut.id - i + 1), select(ge(rank, bound), x, other), above);
}

// 1 + the number of ids that stand before `id`. Counts in floats: exact below 2^24 a lane.
static int32_t rank(const Values& row, int32_t id) {
  const Cut cut = {row.v[id], id};
  F count = zero();
  for (i64 b = 0; b < row.blocks; b++) {
    if (!any(ge(load(row.maxima + b * 16), set1(cut.value)))) continue;
    for (i64 i = b * kBlockIds, end = i + 16 * vectors_of(row.V, b); i < end; i += 16)
      count = add(count, kept(cut, values_at(row.v, i, row.V), i, set1(1.0f), zero()));
  }
  return static_cast<int32_t>(reduce_add(count));
}

// An order of ids: of higher scores first. By value, or (typical_p) by nearness to a centre. -inf stays -inf.
struct ByValue {
  F operator()(F value) const { return value; }
  float operator()(float value) const { return value; }
  F most(F maximum) const { return maximum; }  // that ids can reach whose values are at most `maximum`
};
struct ByNearness {
  float centre;
  F operator()(F value) const { return neg(abs(sub(value, set1(centre)))); }
  float operator()(float value) const { return value > centre ? centre - value : value - centre; }
  F most(F maximum) const { return (*this)(min(maximum, set1(centre))); }
};

// Distinct integers that descend as the total order does.
static inline uint64_t order_key(float value, int32_t id) {
  union {
    float f;
    uint32_t u;
  } x = {value + 0.0f};  // -0 is 0
  const uint32_t up = x.u >> 31 ? ~x.u : x.u | 0x80000000u;
  return static_cast<uint64_t>(up) << 32 | static_cast<uint32_t>(~id);
}

// The largest float below `value`, which is finite.
static inline float below(float value) {
  union {
    float f;
    uint32_t u;
  } x = {value};
  if (value == 0.0f) {
    x.u = 0x80000001u;
  } else {
    x.u += x.u >> 31 ? 1 : -1;
  }
  return x.f;
}

// The first of the n ids, by score (of a value) and then by id, at which start + the sum of weights (of 1 each without weights) reaches
// target; the last one if none does. n > 0, start < target. Changes ids and weights: a radix descent over the keys that are
// left, 256 buckets of the range that they span, so linear in n, and at most 8 rounds even if all values are equal.
template <class SCORE>
static Cut descend(const float* v, const SCORE& score, int32_t* ids, float* weights, i64 n, double start, double target) {
  uint64_t lo = ~uint64_t{0}, hi = 0;
  for (i64 k = 0; k < n; k++) {
    const uint64_t key = order_key(score(v[ids[k]]), ids[k]);
    lo = key < lo ? key : lo;
    hi = key > hi ? key : hi;
  }
  while (n > 1) {
    const int width = 64 - __builtin_clzll(hi - lo), shift = width > 8 ? width - 8 : 0;
    double sum[256];
    for (double& each : sum) each = 0;
    for (i64 k = 0; k < n; k++) sum[(order_key(score(v[ids[k]]), ids[k]) - lo) >> shift] += weights ? weights[k] : 1.0;
    uint64_t bucket = (hi - lo) >> shift;
    while (bucket > 0 && start + sum[bucket] < target) start += sum[bucket--];
    i64 left = 0;
    uint64_t least = ~uint64_t{0}, most = 0;
    for (i64 k = 0; k < n; k++) {
      const uint64_t key = order_key(score(v[ids[k]]), ids[k]);
      if ((key - lo) >> shift != bucket) continue;
      ids[left] = ids[k];
      if (weights) weights[left] = weights[k];
      left++;
      least = key < least ? key : least;
      most = key > most ? key : most;
    }
    n = left;
    lo = least;
    hi = most;
  }
  return {score(v[ids[0]]), ids[0]};
}

// A value that at least k ids reach, 0 < k <= V: the k-th largest maximum of blocks where they are many enough to make it
// tight, else of columns; -inf if there are fewer columns than k. Uses `ids` [blocks * 16] and `tops` [blocks].
static float reached_by(const Values& row, i64 k, int32_t* ids, float* tops) {
  const bool whole_blocks = 2 * k <= row.blocks;
  const i64 n = whole_blocks ? row.blocks : row.blocks * 16;
  if (k > n) return -kInfinity;
  for (i64 b = 0; whole_blocks && b < n; b++) tops[b] = reduce_max(load(row.maxima + b * 16));
  for (i64 i = 0; i < n; i++) ids[i] = static_cast<int32_t>(i);
  return descend(whole_blocks ? tops : row.maxima, ByValue{}, ids, nullptr, n, 0.0, static_cast<double>(k)).value;
}

}  // namespace
OCTAVO_END
