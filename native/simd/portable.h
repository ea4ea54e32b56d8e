// The vocabulary of simd.h on 4 x 4 lanes of the compiler's own vectors; SSE2, which every x86-64 has, where it pays.
// fma multiplies, then adds: its results are a numerics class of their own. Knows no other ISA and no libm.
#pragma once
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define HAS_BF16_DOT 0

OCTAVO_BEGIN
namespace simd {

typedef float V4 __attribute__((vector_size(16)));
typedef int32_t W4 __attribute__((vector_size(16)));
typedef uint32_t U4 __attribute__((vector_size(16)));
typedef float V4u __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t W4u __attribute__((vector_size(16), aligned(1), may_alias));
typedef int32_t word_u __attribute__((aligned(1), may_alias));

struct F {
  V4 v[4];
};
struct I {
  W4 v[4];
};
struct M {
  uint16_t m;
};

template <class Op>
static inline F each(Op op) {
  return {op(0), op(1), op(2), op(3)};
}
template <class Op>
static inline I each_i(Op op) {
  return {op(0), op(1), op(2), op(3)};
}

static inline F set1(float x) { return each([=](int) { return V4{x, x, x, x}; }); }
static inline F zero() { return set1(0); }
static inline I seti(int32_t x) { return each_i([=](int) { return W4{x, x, x, x}; }); }
static inline I zeroi() { return seti(0); }
static inline I iota() { return {W4{0, 1, 2, 3}, W4{4, 5, 6, 7}, W4{8, 9, 10, 11}, W4{12, 13, 14, 15}}; }

static inline M mask_n(i64 n) { return {static_cast<uint16_t>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1u << n) - 1)}; }
static inline I spread(M m) {
  return each_i([=](int i) {
    const W4 bit = W4{1, 2, 4, 8} << (4 * i);
    return (W4{m.m, m.m, m.m, m.m} & bit) == bit;
  });
}
static inline F load(const float* p) { return each([=](int i) { return (V4) reinterpret_cast<const V4u*>(p)[i]; }); }
static inline void store(float* p, F a) {
  for (int i = 0; i < 4; i++) reinterpret_cast<V4u*>(p)[i] = a.v[i];
}
static inline F load_n(const float* p, i64 n) {
  float t[16] = {};
  for (i64 i = 0; i < n && i < 16; i++) t[i] = p[i];
  return load(t);
}
static inline void store_n(float* p, F a, i64 n) {
  for (i64 i = 0; i < n && i < 16; i++) p[i] = a.v[i / 4][i % 4];
}
static inline I loadi(const void* p) {
  return each_i([=](int i) { return (W4) reinterpret_cast<const W4u*>(p)[i]; });
}
static inline void storei(void* p, I a) {
  for (int i = 0; i < 4; i++) reinterpret_cast<W4u*>(p)[i] = a.v[i];
}
static inline I load_i8(const int8_t* p) {
  return each_i([=](int i) { return W4{p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]}; });
}
static inline I load_u8(const uint8_t* p) {
  return each_i([=](int i) { return W4{p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]}; });
}
static inline void store_i8(int8_t* p, I a) {
  for (int i = 0; i < 16; i++) p[i] = static_cast<int8_t>(a.v[i / 4][i % 4]);
}
static inline void store_half_codes(int8_t* p, I a, I b, int32_t* sums) {
  store_i8(p, a);
  store_i8(p + 16, b);
  sums[0] = sums[1] = 0;
  for (int i = 0; i < 32; i++) sums[i / 16] += p[i];
}

static inline I widen_i8(const int8_t* p) {
  const auto word = [p](int k) {
    return static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint16_t>(p[k])) |
                                static_cast<uint32_t>(static_cast<uint16_t>(p[k + 1])) << 16);
  };
  return each_i([&](int i) { return W4{word(8 * i), word(8 * i + 2), word(8 * i + 4), word(8 * i + 6)}; });
}
static inline void store_i16(int16_t* p, I a) {
  for (int i = 0; i < 16; i++) p[i] = static_cast<int16_t>(a.v[i / 4][i % 4]);
}

static inline F add(F a, F b) { return each([&](int i) { return a.v[i] + b.v[i]; }); }
static inline F sub(F a, F b) { return each([&](int i) { return a.v[i] - b.v[i]; }); }
static inline F mul(F a, F b) { return each([&](int i) { return a.v[i] * b.v[i]; }); }
static inline F div(F a, F b) { return each([&](int i) { return a.v[i] / b.v[i]; }); }
static inline F min(F a, F b) { return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
static inline F max(F a, F b) { return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
static inline F fma(F a, F b, F c) { return add(mul(a, b), c); }
static inline F fnma(F a, F b, F c) { return sub(c, mul(a, b)); }
static inline float fma1(float a, float b, float c) { return a * b + c; }
static inline F sqrt(F a) {
#ifdef __SSE2__
  return each([&](int i) { return (V4)_mm_sqrt_ps((__m128)a.v[i]); });
#else
  F r;
  for (int i = 0; i < 16; i++) r.v[i / 4][i % 4] = __builtin_sqrtf(a.v[i / 4][i % 4]);
  return r;
#endif
}

static inline F to_f(I a) { return each([&](int i) { return __builtin_convertvector(a.v[i], V4); }); }
static inline I as_i(F a) { return each_i([&](int i) { return (W4)a.v[i]; }); }
static inline F as_f(I a) { return each([&](int i) { return (V4)a.v[i]; }); }
static inline I add_i(I a, I b) { return each_i([&](int i) { return (W4)((U4)a.v[i] + (U4)b.v[i]); }); }
static inline I sub_i(I a, I b) { return each_i([&](int i) { return (W4)((U4)a.v[i] - (U4)b.v[i]); }); }
static inline I max_i(I a, I b) { return each_i([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
static inline I mul_i(I a, I b) { return each_i([&](int i) { return (W4)((U4)a.v[i] * (U4)b.v[i]); }); }
static inline I and_i(I a, I b) { return each_i([&](int i) { return a.v[i] & b.v[i]; }); }
static inline I or_i(I a, I b) { return each_i([&](int i) { return a.v[i] | b.v[i]; }); }
static inline I xor_i(I a, I b) { return each_i([&](int i) { return a.v[i] ^ b.v[i]; }); }
template <int N>
static inline I shr_i(I a) {
  return each_i([&](int i) { return (W4)((U4)a.v[i] >> N); });
}
static inline I shr_by(I a, int n) {
  return each_i([&](int i) { return (W4)((U4)a.v[i] >> n); });
}
template <int N>
static inline I sar_i(I a) {
  return each_i([&](int i) { return a.v[i] >> N; });
}
template <int N>
static inline I shl_i(I a) {
  return each_i([&](int i) { return (W4)((U4)a.v[i] << N); });
}
static inline F abs(F a) { return as_f(and_i(as_i(a), seti(INT32_MAX))); }
static inline F neg(F a) { return as_f(xor_i(as_i(a), seti(INT32_MIN))); }

// Adding 2^23 leaves no bits below one, so the hardware's rounding is to whole numbers; larger values are whole already.
static inline F round(F a) {
  return each([&](int i) {
    const V4 whole = V4{8388608.0f, 8388608.0f, 8388608.0f, 8388608.0f};
    const W4 sign = (W4)a.v[i] & INT32_MIN;
    const V4 size = (V4)((W4)a.v[i] & INT32_MAX);
    const V4 near = (V4)((W4)((size + whole) - whole) | sign);
    return size < whole ? near : a.v[i];
  });
}
static inline F floor(F a) {
  const F r = round(a);
  return each([&](int i) { return r.v[i] > a.v[i] ? r.v[i] - 1.0f : r.v[i]; });
}
static inline I to_i(F a) {
#ifdef __SSE2__
  return each_i([&](int i) { return (W4)_mm_cvtps_epi32((__m128)a.v[i]); });
#else
  const F r = round(a);
  return each_i([&](int i) { return __builtin_convertvector(r.v[i], W4); });
#endif
}
// a * 2^n, n whole in -252..254: in two factors, the first exact, so rounded once.
static inline F scale2(F a, F n) {
  const I e = to_i(n), h = sar_i<1>(e);
  const I bias = seti(127);
  return mul(mul(a, as_f(shl_i<23>(add_i(h, bias)))), as_f(shl_i<23>(add_i(sub_i(e, h), bias))));
}

static inline M pack(I a) {
  uint32_t m = 0;
  for (int i = 0; i < 4; i++) {
#ifdef __SSE2__
    m |= static_cast<uint32_t>(_mm_movemask_ps((__m128)a.v[i])) << (4 * i);
#else
    for (int j = 0; j < 4; j++) m |= (a.v[i][j] < 0 ? 1u : 0u) << (4 * i + j);
#endif
  }
  return {static_cast<uint16_t>(m)};
}
static inline M lt(F a, F b) { return pack(each_i([&](int i) { return a.v[i] < b.v[i]; })); }
static inline M le(F a, F b) { return pack(each_i([&](int i) { return a.v[i] <= b.v[i]; })); }
static inline M gt(F a, F b) { return lt(b, a); }
static inline M ge(F a, F b) { return le(b, a); }
static inline M eq(F a, F b) { return pack(each_i([&](int i) { return a.v[i] == b.v[i]; })); }
static inline M gt_i(I a, I b) { return pack(each_i([&](int i) { return a.v[i] > b.v[i]; })); }
static inline M eq_i(I a, I b) { return pack(each_i([&](int i) { return a.v[i] == b.v[i]; })); }
static inline I select_i(M m, I a, I b) {
  const I s = spread(m);
  return or_i(and_i(s, a), each_i([&](int i) { return ~s.v[i] & b.v[i]; }));
}
static inline F select(M m, F a, F b) { return as_f(select_i(m, as_i(a), as_i(b))); }
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

static inline I load_u16(const uint16_t* p) {
  return each_i([=](int i) { return W4{p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]}; });
}
static inline F load_bf16(const uint16_t* p) { return as_f(shl_i<16>(load_u16(p))); }
static inline void store_bf16(uint16_t* p, F a) {
  const I u = as_i(a);
  const I r = add_i(add_i(u, seti(0x7fff)), and_i(shr_i<16>(u), seti(1)));
  for (int i = 0; i < 16; i++) {
    const bool nan = (u.v[i / 4][i % 4] & INT32_MAX) > 0x7f800000;
    p[i] = static_cast<uint16_t>((nan ? u.v[i / 4][i % 4] | 0x400000 : r.v[i / 4][i % 4]) >> 16);
  }
}
// The exponent and mantissa move into place and 2^112 corrects the bias, denormals too; then infinity and NaN.
static inline F load_f16(const uint16_t* p) {
  const I h = load_u16(p);
  const F size = mul(as_f(shl_i<13>(and_i(h, seti(0x7fff)))), set1(5192296858534827628530496329220096.0f));
  const I special = spread(ge(size, set1(65536.0f)));
  const I nan = and_i(spread(gt_i(and_i(h, seti(0x7fff)), seti(0x7c00))), seti(0x400000));
  return as_f(or_i(or_i(or_i(as_i(size), and_i(special, seti(0x7f800000))), nan), shl_i<16>(and_i(h, seti(0x8000)))));
}
// To nearest even, a NaN quiet. Below 2^-14 the unit is 2^-24, that of a float of 0.5: adding it rounds.
static inline void store_f16(uint16_t* p, F a) {
  for (int i = 0; i < 16; i++) {
    const float size = __builtin_fabsf(a.v[i / 4][i % 4]), shifted = size + 0.5f;
    uint32_t u, small, sign;
    __builtin_memcpy(&u, &size, 4);
    __builtin_memcpy(&small, &shifted, 4);
    sign = static_cast<uint32_t>(as_i(a).v[i / 4][i % 4]) >> 16 & 0x8000;
    const uint32_t normal = (u - 0x38000000u + 0xfff + (u >> 13 & 1)) >> 13;
    const uint32_t h = u > 0x7f800000u   ? 0x7e00 | (u >> 13 & 0x3ff)
                       : u >= 0x477ff000u ? 0x7c00
                       : u >= 0x38800000u ? normal
                                          : small - 0x3f000000u;
    p[i] = static_cast<uint16_t>(sign | h);
  }
}

static inline float reduce_add(F a) {
  const V4 q = (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
  return (q[0] + q[2]) + (q[1] + q[3]);
}
static inline float reduce_max(F a) {
  const auto top = [](V4 x, V4 y) { return x > y ? x : y; };
  const auto top1 = [](float x, float y) { return x > y ? x : y; };
  const V4 q = top(top(a.v[0], a.v[2]), top(a.v[1], a.v[3]));
  return top1(top1(q[0], q[2]), top1(q[1], q[3]));
}
static inline int32_t reduce_add_i(I a) {
  const U4 q = ((U4)a.v[0] + (U4)a.v[2]) + ((U4)a.v[1] + (U4)a.v[3]);
  return static_cast<int32_t>((q[0] + q[2]) + (q[1] + q[3]));
}
static inline int32_t reduce_max_i(I a) {
  int32_t top = a.v[0][0];
  for (int i = 1; i < 16; i++) top = a.v[i / 4][i % 4] > top ? a.v[i / 4][i % 4] : top;
  return top;
}

// Four products of unsigned and signed bytes in each of four lanes.
static inline W4 dot4(W4 acc, W4 u, W4 s) {
#ifdef __SSE2__
  const __m128i uu = (__m128i)u, ss = (__m128i)s;
  const __m128i even = _mm_madd_epi16(_mm_and_si128(uu, _mm_set1_epi16(255)), _mm_srai_epi16(_mm_slli_epi16(ss, 8), 8));
  const __m128i odd = _mm_madd_epi16(_mm_srli_epi16(uu, 8), _mm_srai_epi16(ss, 8));
  return (W4)_mm_add_epi32((__m128i)acc, _mm_add_epi32(even, odd));
#else
  for (int i = 0; i < 4; i++)
    for (int t = 0; t < 32; t += 8)
      acc[i] += static_cast<int32_t>(static_cast<uint32_t>(u[i]) >> t & 255) *
                static_cast<int8_t>(static_cast<uint32_t>(s[i]) >> t & 255);
  return acc;
#endif
}
static inline I bcast4(const int8_t* p) { return seti(*reinterpret_cast<const word_u*>(p)); }
static inline I dot_i16(I acc, I a, I b) {
#ifdef __SSE2__
  return each_i([&](int i) { return acc.v[i] + (W4)_mm_madd_epi16((__m128i)a.v[i], (__m128i)b.v[i]); });
#else
  return each_i([&](int i) { return acc.v[i] + (a.v[i] << 16 >> 16) * (b.v[i] << 16 >> 16) + (a.v[i] >> 16) * (b.v[i] >> 16); });
#endif
}
static inline I dot_u8s8(I acc, I u, I s) { return each_i([&](int i) { return dot4(acc.v[i], u.v[i], s.v[i]); }); }
static inline I nibble_lo(I a) { return and_i(a, seti(0x0f0f0f0f)); }
static inline I nibble_hi(I a) { return nibble_lo(shr_i<4>(a)); }
static inline I table16(const uint8_t* p) { return each_i([=](int) { return (W4) *reinterpret_cast<const W4u*>(p); }); }
static inline I lookup(I table, I codes) {
  alignas(16) uint8_t entries[64], from[64];
  storei(entries, table);
  storei(from, codes);
  for (int i = 0; i < 64; i++) from[i] = entries[from[i]];
  return loadi(from);
}
using Quad = W4;
static inline Quad quad(const int8_t* p) { return bcast4(p).v[0]; }
template <int MAX, int ZERO, int QUADS>
struct Dot {
  using Start = int32_t;
  I acc;
  static inline Start start_of(const int8_t*, int32_t sum) { return -ZERO * sum; }
  inline void start(Start from) { acc = seti(from); }
  template <int N>
  __attribute__((always_inline)) inline void step(I w, Quad x) {
    acc = each_i([&](int i) { return dot4(acc.v[i], w.v[i], x); });
  }
  inline I total() const { return acc; }
};

// In assembly: gcc 12 takes a function that only prefetches for one without effect and deletes its calls.
#ifdef __SSE2__
static inline void prefetch(const void* p) { asm volatile("prefetcht0 %0" : : "m"(*static_cast<const char*>(p))); }
#else
static inline void prefetch(const void* p) { __builtin_prefetch(p); }
#endif

}  // namespace simd
OCTAVO_END
