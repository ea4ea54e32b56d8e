// Ceilings of the machine through the team itself: how fast these threads read memory, and how fast they multiply. The
// roofline of `profile`, `bench` and the cost model's first guess. Arguments:
// "ceiling.read"  0 ptr 1 bytes (a multiple of threads * 256) 2 sink ptr int64 [threads]
// "ceiling.int8"  0 iterations 1 sink ptr: iterations * kChains dot products of 64 byte pairs, once a thread
// "ceiling.bf16"  the same with 32 bf16 pairs (float fma on 16 lanes where there is no bf16 dot)
#include "simd/simd.h"

OCTAVO_BEGIN
namespace {

using namespace simd;

constexpr int kChains = 12;      // independent accumulators: latency 4-5 x 2 issues a cycle, and the tile's own number
constexpr i64 kAhead = 2048;     // bytes of software prefetch: what the linears use

void read(const i64* args, const Run& run) {
  const auto* base = reinterpret_cast<const uint8_t*>(args[0]);
  I sums[4] = {zeroi(), zeroi(), zeroi(), zeroi()};
  for (Share share; take(run, 1, args[1] / 256, share);) {
    for (const uint8_t *p = base + share.begin * 256, *end = base + share.end * 256; p < end; p += 256) {
      for (int k = 0; k < 4; k++) prefetch(p + kAhead + k * 64);
      for (int k = 0; k < 4; k++) sums[k] = add_i(sums[k], loadi(p + k * 64));
    }
  }
  const I all = add_i(add_i(sums[0], sums[1]), add_i(sums[2], sums[3]));
  reinterpret_cast<i64*>(args[2])[run.thread] = reduce_add_i(all);
}

void int8(const i64* args, const Run& run) {
  alignas(64) static const int8_t pattern[64] = {3, 2, 1};
  I acc[kChains];
  for (I& a : acc) a = zeroi();
  I w = loadi(pattern);
  const I x = bcast4(pattern);
  for (Share share; take(run, 1, run.threads, share);) {
    for (i64 i = 0; i < args[0] * (share.end - share.begin); i++) {
      for (I& a : acc) a = dot_u8s8(a, w, x);
    }
  }
  I all = acc[0];
  for (int k = 1; k < kChains; k++) all = add_i(all, acc[k]);
  reinterpret_cast<i64*>(args[1])[run.thread] = reduce_add_i(all);
}

void bf16(const i64* args, const Run& run) {
  F acc[kChains];
  for (F& a : acc) a = zero();
#if HAS_BF16_DOT
  const I x = seti(0x3f803f80);
#else
  const F x = set1(1.0f);
#endif
  for (Share share; take(run, 1, run.threads, share);) {
    for (i64 i = 0; i < args[0] * (share.end - share.begin); i++) {
#if HAS_BF16_DOT
      for (F& a : acc) a = dot_bf16(a, x, x);
#else
      for (F& a : acc) a = fma(x, x, a);
#endif
    }
  }
  F all = acc[0];
  for (int k = 1; k < kChains; k++) all = add(all, acc[k]);
  reinterpret_cast<i64*>(args[1])[run.thread] = static_cast<i64>(reduce_add(all));
}

}  // namespace

OCTAVO_ENTRIES(ceilings, {"ceiling.read", OCTAVO_FN(read)}, {"ceiling.int8", OCTAVO_FN(int8)}, {"ceiling.bf16", OCTAVO_FN(bf16)})

OCTAVO_END
