// What pages hold and how their elements are read and summed. Knows nothing of where in a page an element is.
#pragma once
#include "../simd/simd.h"

OCTAVO_BEGIN
namespace {

using namespace simd;

enum KeyKind { kBf16Dot, kBf16Wide, kFloat, kInt8, kHalf };
template <KeyKind KIND>
constexpr bool kAlone = KIND == kFloat || KIND == kHalf;  // pages hold single elements, not pairs

// The accumulator of a product.
template <KeyKind KIND>
struct Sum {
  using T = F;
  static inline T none() { return zero(); }
};
template <>
struct Sum<kInt8> {
  using T = I;
  static inline T none() { return zeroi(); }
};

// Elements [at, at + 16) of a page of floats or halves.
template <KeyKind KIND>
static inline F elements(const uint8_t* page, i64 at) {
  if constexpr (KIND == kHalf)
    return load_f16(reinterpret_cast<const uint16_t*>(page) + at);
  else
    return load(reinterpret_cast<const float*>(page) + at);
}

}  // namespace
OCTAVO_END
