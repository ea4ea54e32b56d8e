// bf16.p32.k1.1: [K][32] elements.
#pragma once
#include "../simd/simd.h"

OCTAVO_BEGIN
namespace {

struct Bf16 {
  using Element = uint16_t;
  static inline simd::F load(const Element* p) { return simd::load_bf16(p); }
};

}  // namespace
OCTAVO_END
