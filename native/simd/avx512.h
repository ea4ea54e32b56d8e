// The vocabulary of simd.h on zmm (F, BW, VL, VNNI; BF16 where compiled in). Knows only intrinsics.
#pragma once
#include <immintrin.h>

#ifdef __AVX512BF16__
#define HAS_BF16_DOT 1
#else
#define HAS_BF16_DOT 0
#endif
// AMX, where the processor has it (isa.cc): no compiler makes its instructions by itself.
#define HAS_MATRIX_TILES HAS_BF16_DOT

OCTAVO_BEGIN
namespace simd {

typedef int32_t word_u __attribute__((aligned(1), may_alias));

struct F {
  __m512 v;
};
struct I {
  __m512i v;
};
struct M {
  uint16_t m;
};

static inline F zero() { return {_mm512_setzero_ps()}; }
static inline F set1(float x) { return {_mm512_set1_ps(x)}; }
static inline I seti(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline I zeroi() { return {_mm512_setzero_si512()}; }
static inline I iota() { return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }

static inline M mask_n(i64 n) { return {static_cast<uint16_t>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1u << n) - 1)}; }
static inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
static inline F load_n(const float* p, i64 n) { return {_mm512_maskz_loadu_ps(mask_n(n).m, p)}; }
static inline void store_n(float* p, F a, i64 n) { _mm512_mask_storeu_ps(p, mask_n(n).m, a.v); }
static inline I loadi(const void* p) { return {_mm512_loadu_si512(p)}; }
static inline void storei(void* p, I a) { _mm512_storeu_si512(p, a.v); }
static inline I load_i8(const int8_t* p) { return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
static inline I load_u8(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
// Tables of 16 x 16 lanes are turned by merging neighbours: two shuffles bring what belongs together side by side.
template <class Merge>
static inline __m512i merge4(__m512i a, __m512i b, __m512i c, __m512i d, Merge merge) {
  const __m512i x = merge(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i y = merge(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  return merge(_mm512_unpacklo_epi64(x, y), _mm512_unpackhi_epi64(x, y));  // 4 lanes of 128 bits, each of a, b, c, d
}
static inline I most16(const I* v) {
  const auto most = [](__m512i a, __m512i b) { return _mm512_max_epi32(a, b); };
  __m512i q[4];
  for (int i = 0; i < 4; i++) q[i] = merge4(v[4 * i].v, v[4 * i + 1].v, v[4 * i + 2].v, v[4 * i + 3].v, most);
  const __m512i x = most(_mm512_shuffle_i32x4(q[0], q[1], 0x88), _mm512_shuffle_i32x4(q[0], q[1], 0xdd));
  const __m512i y = most(_mm512_shuffle_i32x4(q[2], q[3], 0x88), _mm512_shuffle_i32x4(q[2], q[3], 0xdd));
  return {most(_mm512_shuffle_i32x4(x, y, 0x88), _mm512_shuffle_i32x4(x, y, 0xdd))};
}
static inline I store_codes(int8_t* p, int8_t* q, I a, I b, I c, I d) {
  const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(a.v, b.v), _mm512_packs_epi32(c.v, d.v));
  // packs goes by lanes of 128 bits: word 4 * lane + n has bytes of vector n
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i v = _mm512_permutexvar_epi32(order, bytes);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(v));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), _mm512_extracti64x4_epi64(v, 1));
  return {_mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), v)};
}
static inline void sums16(const I* v, I& first, I& second) {
  const auto sum = [](__m512i a, __m512i b) { return _mm512_add_epi32(a, b); };
  // 4 lanes of 128 bits: first halves of even groups, second ones, those of odd groups
  const __m512i x = merge4(v[0].v, v[1].v, v[2].v, v[3].v, sum), y = merge4(v[4].v, v[5].v, v[6].v, v[7].v, sum);
  const __m512i order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 16, 24, 17, 25, 18, 26, 19, 27);
  first = {_mm512_permutex2var_epi32(x, order, y)};
  second = {_mm512_permutex2var_epi32(x, _mm512_add_epi32(order, _mm512_set1_epi32(4)), y)};
}

static inline void transpose_pairs(const uint16_t* from, uint16_t* to) {
  __m512i v[8], w[8];
  for (int i = 0; i < 8; i++) v[i] = _mm512_loadu_si512(from + 32 * i);
  const __m512i low = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(4));
  for (int i = 0; i < 4; i++) {  // 4 rows: words 0..3 and 4..7, one after the other
    w[i] = _mm512_permutex2var_epi32(v[2 * i], low, v[2 * i + 1]);
    w[i + 4] = _mm512_permutex2var_epi32(v[2 * i], high, v[2 * i + 1]);
  }
  for (int h = 0; h < 2; h++) {
    const __m512i* a = w + 4 * h;
    const __m512i x = _mm512_shuffle_i32x4(a[0], a[1], 0x44), y = _mm512_shuffle_i32x4(a[2], a[3], 0x44);
    const __m512i z = _mm512_shuffle_i32x4(a[0], a[1], 0xee), u = _mm512_shuffle_i32x4(a[2], a[3], 0xee);
    uint16_t* out = to + 128 * h;
    _mm512_storeu_si512(out, _mm512_shuffle_i32x4(x, y, 0x88));
    _mm512_storeu_si512(out + 32, _mm512_shuffle_i32x4(x, y, 0xdd));
    _mm512_storeu_si512(out + 64, _mm512_shuffle_i32x4(z, u, 0x88));
    _mm512_storeu_si512(out + 96, _mm512_shuffle_i32x4(z, u, 0xdd));
  }
}

static inline I widen_i8(const int8_t* p) {
  return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
static inline void store_i16(int16_t* p, I a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}

static inline F add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline F sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline F mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline F div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline F abs(F a) { return {_mm512_abs_ps(a.v)}; }
static inline F sqrt(F a) { return {_mm512_sqrt_ps(a.v)}; }
static inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline F fnma(F a, F b, F c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
static inline float fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline F floor(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
static inline F round(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
static inline F scale2(F a, F n) { return {_mm512_scalef_ps(a.v, n.v)}; }  // a * 2^n, n whole, rounded once

static inline F to_f(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline I to_i(F a) { return {_mm512_cvtps_epi32(a.v)}; }
static inline I as_i(F a) { return {_mm512_castps_si512(a.v)}; }
static inline F as_f(I a) { return {_mm512_castsi512_ps(a.v)}; }
static inline I add_i(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline I mul_16(I a, I b) { return {_mm512_mullo_epi16(a.v, b.v)}; }
static inline I add_16(I a, I b) { return {_mm512_add_epi16(a.v, b.v)}; }
template <int N>
static inline I shr_16(I a) {
  return {_mm512_srli_epi16(a.v, N)};
}
static inline I sub_bytes(I a, I b) { return {_mm512_sub_epi8(a.v, b.v)}; }
static inline I sub_i(I a, I b) { return {_mm512_sub_epi32(a.v, b.v)}; }
static inline I max_i(I a, I b) { return {_mm512_max_epi32(a.v, b.v)}; }
static inline I mul_i(I a, I b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
static inline I and_i(I a, I b) { return {_mm512_and_si512(a.v, b.v)}; }
static inline I or_i(I a, I b) { return {_mm512_or_si512(a.v, b.v)}; }
static inline I xor_i(I a, I b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int N>
static inline I shr_i(I a) {
  return {_mm512_srli_epi32(a.v, N)};
}
static inline I shr_by(I a, int n) { return {_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(n))}; }
template <int N>
static inline I sar_i(I a) {
  return {_mm512_srai_epi32(a.v, N)};
}
template <int N>
static inline I shl_i(I a) {
  return {_mm512_slli_epi32(a.v, N)};
}
static inline F neg(F a) { return as_f(xor_i(as_i(a), seti(INT32_MIN))); }

static inline M lt(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
static inline M le(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
static inline M gt(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
static inline M ge(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
static inline M eq(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
static inline M gt_i(I a, I b) { return {_mm512_cmpgt_epi32_mask(a.v, b.v)}; }
static inline M eq_i(I a, I b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
static inline F select(M m, F a, F b) { return {_mm512_mask_blend_ps(m.m, b.v, a.v)}; }
static inline I select_i(M m, I a, I b) { return {_mm512_mask_blend_epi32(m.m, b.v, a.v)}; }
// Lanes of m one after the other to p, where 16 may be written; their number.
static inline int compress(float* p, F a, M m) {
  _mm512_storeu_ps(p, _mm512_maskz_compress_ps(m.m, a.v));
  return __builtin_popcount(m.m);
}
static inline bool any(M m) { return m.m != 0; }
static inline uint32_t bits(M m) { return m.m; }
static inline int first(M m) { return __builtin_ctz(m.m); }  // m is not empty

static inline F load_bf16(const uint16_t* p) {
  return {_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16))};
}
// In integers: vcvtneps2bf16 flushes denormals.
static inline void store_bf16(uint16_t* p, F a) {
  const I u = as_i(a);
  const I r = add_i(add_i(u, seti(0x7fff)), and_i(shr_i<16>(u), seti(1)));
  const I q = select_i({_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}, or_i(u, seti(0x400000)), r);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(shr_i<16>(q).v));
}
static inline F load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
static inline void store_f16(uint16_t* p, F a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

static inline float reduce_add(F a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v),
                                 _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1)));
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
static inline float reduce_max(F a) {
  const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a.v),
                                 _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1)));
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}
static inline int32_t reduce_add_i(I a) { return _mm512_reduce_add_epi32(a.v); }
static inline int32_t reduce_max_i(I a) { return _mm512_reduce_max_epi32(a.v); }

static inline I bcast4(const int8_t* p) { return {_mm512_set1_epi32(*reinterpret_cast<const word_u*>(p))}; }
static inline I dot_u8s8(I acc, I u, I s) { return {_mm512_dpbusd_epi32(acc.v, u.v, s.v)}; }
static inline I dot_i16(I acc, I a, I b) { return {_mm512_dpwssd_epi32(acc.v, a.v, b.v)}; }
static inline I nibble_lo(I a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
static inline I nibble_hi(I a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
static inline I table16(const uint8_t* p) {
  return {_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(p)))};
}
static inline I lookup(I table, I codes) { return {_mm512_shuffle_epi8(table.v, codes.v)}; }
using Quad = I;
static inline Quad quad(const int8_t* p) { return bcast4(p); }
template <int MAX, int ZERO, int QUADS>
struct Dot {
  using Start = int32_t;
  I acc;
  static inline Start start_of(const int8_t*, int32_t sum) { return -ZERO * sum; }
  inline void start(Start from) { acc = seti(from); }
  template <int N>
  inline void step(I w, Quad x) {
    acc = dot_u8s8(acc, w, x);
  }
  inline I total() const { return acc; }
};

// In assembly: gcc 12 takes a function that only prefetches for one without effect and deletes its calls.
static inline void prefetch(const void* p) { asm volatile("prefetcht0 %0" : : "m"(*static_cast<const char*>(p))); }
#if HAS_BF16_DOT
// Lane l: acc + a[2l] * b[2l] + a[2l+1] * b[2l+1] of bf16, in the instruction's own rounding.
static inline F dot_bf16(F acc, I a, I b) { return {_mm512_dpbf16_ps(acc.v, (__m512bh)a.v, (__m512bh)b.v)}; }
#endif

}  // namespace simd
OCTAVO_END
