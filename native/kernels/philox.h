// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3,
// SC 2011). The same key and counter give the same four words on every machine; there is no state. Knows no sampling.
#pragma once
#include "../variant.h"

OCTAVO_BEGIN
namespace {

struct Philox {
  uint32_t word[4];
};

// Ten rounds on the counter {c0, c1, c2, c3} under the key. Multipliers and Weyl constants (golden ratio, sqrt(3) - 1) are
// those of the paper.
static inline Philox philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; round++) {
    const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * c0, b = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Uniform in [0, 1), a multiple of 2^-53: 27 bits of the first word above 26 of the second.
static inline double uniform(const Philox& p) {
  return static_cast<double>((static_cast<uint64_t>(p.word[0] >> 5) << 26) | (p.word[1] >> 6)) * 0x1p-53;
}

}  // namespace
OCTAVO_END
