// f32.p32.k1.1: [K][32] elements.
#pragma once
#include "../simd/simd.h"

OCTAVO_BEGIN
namespace {

struct F32 {
  using Element = float;
  static inline simd::F load(const Element* p) { return simd::load(p); }
};

}  // namespace
OCTAVO_END
