// The oracle of order: scalar code that does what a linear promises, one column at a time. Compiled once, with baseline
// flags, for tests and `verify`. Knows the packed layouts; shares no code with the kernels.
#pragma once
#include "kernel.h"

namespace octavo {

// out[r * ld + c] of `panels` panels of the layout `id` ("q4_1.p32.k4.1"); acts are rows as the layout's Format wants
// them. fused: std::fma as in the fma classes, else multiply then add (portable). False when the id is unknown.
bool oracle_linear(const char* id, const uint8_t* weights, i64 K, i64 panels, const uint8_t* acts, i64 rows, float* out,
                   i64 ld, bool fused);

// One row of K floats to act_row_bytes(K) bytes; `span` values share a scale.
void oracle_quantize_row(const float* x, i64 K, i64 span, uint8_t* row);

// x[k] * (1 / sqrt(mean of squares + eps)) * weight[k]; the sum of squares in 16 lanes, then the fixed tree.
void oracle_rms_norm(const float* x, const float* weight, i64 K, float eps, bool fused, float* out);

}  // namespace octavo
