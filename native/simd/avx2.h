// The vocabulary of simd.h on two ymm (AVX2, FMA, F16C). Knows only intrinsics.
#pragma once
#include <immintrin.h>

#define HAS_BF16_DOT 0

OCTAVO_BEGIN
namespace simd {

typedef int32_t word_u __attribute__((aligned(1), may_alias));

struct F {
  __m256 a, b;  // lanes 0..7, 8..15
};
struct I {
  __m256i a, b;
};
struct M {
  uint16_t m;
};

static inline F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline I seti(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline I zeroi() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline I iota() {
  return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}

static inline M mask_n(i64 n) { return {static_cast<uint16_t>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1u << n) - 1)}; }
// All ones in the lanes of the mask.
static inline I spread(M m) {
  const I bit = {_mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128),
                 _mm256_setr_epi32(256, 512, 1024, 2048, 4096, 8192, 16384, 32768)};
  const __m256i v = _mm256_set1_epi32(m.m);
  return {_mm256_cmpeq_epi32(_mm256_and_si256(v, bit.a), bit.a), _mm256_cmpeq_epi32(_mm256_and_si256(v, bit.b), bit.b)};
}
static inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, F x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
static inline F load_n(const float* p, i64 n) {
  const I m = spread(mask_n(n));
  return {_mm256_maskload_ps(p, m.a), _mm256_maskload_ps(p + 8, m.b)};
}
static inline void store_n(float* p, F x, i64 n) {
  const I m = spread(mask_n(n));
  _mm256_maskstore_ps(p, m.a, x.a);
  _mm256_maskstore_ps(p + 8, m.b, x.b);
}
static inline I loadi(const void* p) {
  const __m256i* q = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
static inline void storei(void* p, I x) {
  __m256i* q = static_cast<__m256i*>(p);
  _mm256_storeu_si256(q, x.a);
  _mm256_storeu_si256(q + 1, x.b);
}
static inline I load_i8(const int8_t* p) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))};
}
static inline I load_u8(const uint8_t* p) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))};
}
static inline __m128i low16(I x) {  // 8 x 2 int32 -> 16 of their low bytes
  const __m256i pick = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                        0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i a = _mm256_shuffle_epi8(x.a, pick), b = _mm256_shuffle_epi8(x.b, pick);
  const __m128i lo = _mm_unpacklo_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  const __m128i hi = _mm_unpacklo_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  return _mm_unpacklo_epi64(lo, hi);
}
// The bias makes the bytes unsigned for vpsadbw: 16 times 128 too much in each sum.
static inline void store_half_codes(int8_t* p, I x, I y, int32_t* sums) {
  const __m256i v = _mm256_inserti128_si256(_mm256_castsi128_si256(low16(x)), low16(y), 1);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
  __m256i s = _mm256_sad_epu8(_mm256_xor_si256(v, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
  s = _mm256_add_epi64(s, _mm256_shuffle_epi32(s, 0x4e));
  sums[0] = _mm_cvtsi128_si32(_mm256_castsi256_si128(s)) - 2048;
  sums[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(s, 1)) - 2048;
}

static inline I widen_i8(const int8_t* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128(q)), _mm256_cvtepi8_epi16(_mm_loadu_si128(q + 1))};
}
static inline void store_i16(int16_t* p, I x) {
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);  // packs stays within halves
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed);
}

static inline F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline F abs(F x) {
  const __m256 s = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(s, x.a), _mm256_andnot_ps(s, x.b)};
}
static inline F neg(F x) {
  const __m256 s = _mm256_set1_ps(-0.0f);
  return {_mm256_xor_ps(s, x.a), _mm256_xor_ps(s, x.b)};
}
static inline F sqrt(F x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
static inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
static inline F fnma(F x, F y, F z) { return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }
static inline float fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline F floor(F x) { return {_mm256_floor_ps(x.a), _mm256_floor_ps(x.b)}; }
static inline F round(F x) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, kMode), _mm256_round_ps(x.b, kMode)};
}

static inline F to_f(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
static inline I to_i(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
static inline I as_i(F x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
static inline F as_f(I x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
static inline I add_i(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
static inline I sub_i(I x, I y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
static inline I max_i(I x, I y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
static inline I mul_i(I x, I y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
static inline I and_i(I x, I y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
static inline I or_i(I x, I y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
static inline I xor_i(I x, I y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
template <int N>
static inline I shr_i(I x) {
  return {_mm256_srli_epi32(x.a, N), _mm256_srli_epi32(x.b, N)};
}
static inline I shr_by(I x, int n) {
  const __m128i count = _mm_cvtsi32_si128(n);
  return {_mm256_srl_epi32(x.a, count), _mm256_srl_epi32(x.b, count)};
}
template <int N>
static inline I sar_i(I x) {
  return {_mm256_srai_epi32(x.a, N), _mm256_srai_epi32(x.b, N)};
}
template <int N>
static inline I shl_i(I x) {
  return {_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N)};
}
// a * 2^n, n whole in -252..254: in two factors, the first exact, so rounded once.
static inline F scale2(F x, F n) {
  const I e = to_i(n), h = sar_i<1>(e);
  const I bias = seti(127);
  return mul(mul(x, as_f(shl_i<23>(add_i(h, bias)))), as_f(shl_i<23>(add_i(sub_i(e, h), bias))));
}

static inline M pack(__m256 a, __m256 b) {
  return {static_cast<uint16_t>(_mm256_movemask_ps(a) | _mm256_movemask_ps(b) << 8)};
}
static inline M lt(F x, F y) { return pack(_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)); }
static inline M le(F x, F y) { return pack(_mm256_cmp_ps(x.a, y.a, _CMP_LE_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LE_OQ)); }
static inline M gt(F x, F y) { return pack(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ)); }
static inline M ge(F x, F y) { return pack(_mm256_cmp_ps(x.a, y.a, _CMP_GE_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GE_OQ)); }
static inline M eq(F x, F y) { return pack(_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ)); }
static inline M gt_i(I x, I y) {
  const F m = as_f({_mm256_cmpgt_epi32(x.a, y.a), _mm256_cmpgt_epi32(x.b, y.b)});
  return pack(m.a, m.b);
}
static inline M eq_i(I x, I y) {
  const F m = as_f({_mm256_cmpeq_epi32(x.a, y.a), _mm256_cmpeq_epi32(x.b, y.b)});
  return pack(m.a, m.b);
}
static inline F select(M m, F x, F y) {
  const F s = as_f(spread(m));
  return {_mm256_blendv_ps(y.a, x.a, s.a), _mm256_blendv_ps(y.b, x.b, s.b)};
}
static inline I select_i(M m, I x, I y) { return as_i(select(m, as_f(x), as_f(y))); }
static inline bool any(M m) { return m.m != 0; }
static inline uint32_t bits(M m) { return m.m; }
// Lanes of m one after the other to p, where 16 may be written; their number.
static inline int compress(float* p, F a, M m) {
  alignas(64) float lanes[16];
  store(lanes, a);
  int n = 0;
  for (uint32_t left = m.m; left; left &= left - 1) p[n++] = lanes[__builtin_ctz(left)];
  return n;
}
static inline int first(M m) { return __builtin_ctz(m.m); }  // m is not empty

static inline F load_bf16(const uint16_t* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return as_f(shl_i<16>({_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), _mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1))}));
}
static inline void store_bf16(uint16_t* p, F x) {
  const I u = as_i(x);
  const I r = add_i(add_i(u, seti(0x7fff)), and_i(shr_i<16>(u), seti(1)));
  const I nan = as_i({_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q)});
  const I quiet = or_i(u, seti(0x400000));
  const I q = shr_i<16>({_mm256_blendv_epi8(r.a, quiet.a, nan.a), _mm256_blendv_epi8(r.b, quiet.b, nan.b)});
  const __m256i v = _mm256_permute4x64_epi64(_mm256_packus_epi32(q.a, q.b), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}
static inline F load_f16(const uint16_t* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
static inline void store_f16(uint16_t* p, F x) {
  __m128i* q = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(q, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(q + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}

static inline float reduce_add(F x) {
  const __m256 h = _mm256_add_ps(x.a, x.b);
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
static inline float reduce_max(F x) {
  const __m256 h = _mm256_max_ps(x.a, x.b);
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}
static inline int32_t reduce_add_i(I x) {
  const __m256i h = _mm256_add_epi32(x.a, x.b);
  __m128i q = _mm_add_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
  q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
}
static inline int32_t reduce_max_i(I x) {
  const __m256i h = _mm256_max_epi32(x.a, x.b);
  __m128i q = _mm_max_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
  q = _mm_max_epi32(q, _mm_shuffle_epi32(q, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
}

static inline I bcast4(const int8_t* p) { return seti(*reinterpret_cast<const word_u*>(p)); }
// Exact for every u8 and s8: bytes widen to 16 bits, even and odd apart.
static inline __m256i dot_wide(__m256i acc, __m256i u, __m256i s) {
  const __m256i low = _mm256_set1_epi16(255);
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, low), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
  return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}
static inline I dot_i16(I acc, I x, I y) {
  return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(x.a, y.a)), _mm256_add_epi32(acc.b, _mm256_madd_epi16(x.b, y.b))};
}
static inline I dot_u8s8(I acc, I u, I s) { return {dot_wide(acc.a, u.a, s.a), dot_wide(acc.b, u.b, s.b)}; }
static inline I nibble_lo(I x) {
  const __m256i m = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
static inline I nibble_hi(I x) { return nibble_lo({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}); }
static inline I table16(const uint8_t* p) {
  const __m256i v = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
  return {v, v};
}
static inline I lookup(I table, I codes) {
  return {_mm256_shuffle_epi8(table.a, codes.a), _mm256_shuffle_epi8(table.b, codes.b)};
}
using Quad = __m256i;
static inline Quad quad(const int8_t* p) { return _mm256_set1_epi32(*reinterpret_cast<const word_u*>(p)); }
// maddubs adds two products into 16 bits, at most 2 * 127 * MAX. Codes less their zero point are small enough that a lane
// holds all QUADS of a group (Q8_0's are not: add_signed), and sums wrap, so only the end has to fit: they
// begin at -ZERO * the sum of the activations that fall on the lane, which is the same for all columns. Codes of five bits
// from 0 on fit around their middle: what is taken away for it, the same for all columns too, comes back at the end.
template <int MAX, int ZERO, int QUADS>
struct Dot {
  static constexpr int kMiddle = ZERO == 0 && 2 * 127 * QUADS * MAX > 32767 ? (MAX + 1) / 2 : ZERO;
  static constexpr int kMost = kMiddle > MAX - kMiddle ? kMiddle : MAX - kMiddle;
  static constexpr bool kNarrow = 2 * 127 * QUADS * kMost <= 32767 && 2 * 127 * MAX <= 32767;
  static_assert(kNarrow || (ZERO == 128 && MAX == 255));
  struct Start {
    __m256i v;
    int32_t back;
  };
  I acc;
  int32_t back;
  // x: the group's activations, sum: theirs. Lane parities 0 and 1 have k = 4q + {0, 1} and 4q + {2, 3}.
  static inline Start start_of(const int8_t* x, int32_t sum) {
    if constexpr (kMiddle == 0 || !kNarrow) return {_mm256_setzero_si256(), 0};
    const __m128i* at = reinterpret_cast<const __m128i*>(x);
    const __m128i zero = _mm_set1_epi8(static_cast<char>(kMiddle));
    __m128i h = _mm_maddubs_epi16(zero, _mm_loadu_si128(at));
    if constexpr (QUADS == 8) h = _mm_add_epi16(h, _mm_maddubs_epi16(zero, _mm_loadu_si128(at + 1)));
    h = _mm_add_epi16(h, _mm_shuffle_epi32(h, 0x4e));
    h = _mm_add_epi16(h, _mm_shuffle_epi32(h, 0xb1));
    return {_mm256_sub_epi16(_mm256_setzero_si256(), _mm256_broadcastsi128_si256(h)), (kMiddle - ZERO) * sum};
  }
  inline void start(Start from) {
    acc = {from.v, from.v};
    back = from.back;
  }
  template <int N>
  inline void step(I w, Quad x) {
    if constexpr (!kNarrow) {
      acc = {add_signed(acc.a, w.a, x), add_signed(acc.b, w.b, x)};
    } else {
      const I p = {_mm256_maddubs_epi16(w.a, x), _mm256_maddubs_epi16(w.b, x)};
      acc = N == 0 && kMiddle == 0 ? p : I{_mm256_add_epi16(acc.a, p.a), _mm256_add_epi16(acc.b, p.b)};
    }
    asm("" : "+x"(acc.a), "+x"(acc.b));  // or gcc reassociates: all products first, spilled, then their sum
  }
  // Bytes of zero point 128: the sign of the weight moves to the activation; 2 * 128 * 127 fits 16 bits.
  static inline __m256i add_signed(__m256i sum, __m256i u, __m256i x) {
    const __m256i w = _mm256_xor_si256(u, _mm256_set1_epi8(-128));
    const __m256i p = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(p, _mm256_set1_epi16(1)));
  }
  inline I total() const {
    if constexpr (!kNarrow) return acc;
    const __m256i one = _mm256_set1_epi16(1);
    const I sum = {_mm256_madd_epi16(acc.a, one), _mm256_madd_epi16(acc.b, one)};
    return kMiddle == ZERO ? sum : add_i(sum, seti(back));
  }
};

// In assembly: gcc 12 takes a function that only prefetches for one without effect and deletes its calls.
static inline void prefetch(const void* p) { asm volatile("prefetcht0 %0" : : "m"(*static_cast<const char*>(p))); }

}  // namespace simd
OCTAVO_END
