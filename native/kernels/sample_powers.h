// ln and e^x in double for the sampler's few scalars, the same bits in every variant: plain additions and products, no libm.
// Knows no sampling.
#pragma once
#include "../variant.h"

OCTAVO_BEGIN
namespace {

constexpr double kLn2 = 0.69314718055994530942;

// ln x for a finite x >= 1. x = 2^e m, sqrt(1/2) <= m < sqrt(2); ln m = 2 artanh((m - 1) / (m + 1)), |argument| <= 0.1716:
// the term after s^21 is below 2 * 0.1716^23 / 23 = 2e-19.
static double natural_log(double x) {
  union {
    double d;
    uint64_t u;
  } m = {x};
  i64 e = static_cast<i64>(m.u >> 52) - 1023;
  m.u = (m.u & 0xfffffffffffffu) | 0x3ff0000000000000u;
  if (m.d > 1.4142135623730951) {
    m.d *= 0.5;
    e++;
  }
  const double s = (m.d - 1.0) / (m.d + 1.0), q = s * s;
  double sum = 0;
  for (int k = 21; k >= 1; k -= 2) sum = sum * q + 1.0 / k;
  return static_cast<double>(e) * kLn2 + 2.0 * s * sum;
}

// e^x, 0 below -700 and e^700 above 700. x = n ln 2 + r, |r| <= 0.3466: the term after r^14 is below 0.3466^15 / 15! = 1e-19;
// ln 2 is taken off in two parts, the first of 32 bits, so that n times it is exact.
static double exponential(double x) {
  if (!(x > -700.0)) return 0.0;
  if (x > 700.0) x = 700.0;
  const i64 n = static_cast<i64>(x / kLn2 + (x < 0 ? -0.5 : 0.5));
  const double whole = static_cast<double>(n);
  const double r = (x - whole * 0.693147180369123816490) - whole * 1.90821492927058770002e-10;
  double sum = 1.0;
  for (int k = 14; k >= 1; k--) sum = sum * r / k + 1.0;
  union {
    uint64_t u;
    double d;
  } scale = {static_cast<uint64_t>(n + 1023) << 52};
  return sum * scale.d;
}

}  // namespace
OCTAVO_END
