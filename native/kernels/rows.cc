// Kernel "rows": row ops where no product stands before or after them: a norm whose result is added to the residual stream,
// a norm over all heads of q. Whole rows are copied into a tile and go through the ops; a row is a unit of work. Ops see
// the whole row, so that every locality fits. Knows ops by their functions only. Arguments: see kernel.h.
#include "../simd/simd.h"

OCTAVO_BEGIN
namespace {

constexpr i64 kRows = 16;  // of a tile: quantize_groups takes 16 rows at a time, and 16 x 8,192 floats are one L2

// 0 rows[dim] 1 K 2 src ptr f32 3 src_ld 4 number of ops, then each {TileFn, n, args...}
void rows(const i64* args, const Run& run) {
  const i64 count = run.dims[args[0]], K = args[1], ld = (K + 15) / 16 * 16;
  const float* src = reinterpret_cast<const float*>(args[2]);
  float* data = reinterpret_cast<float*>(run.scratch);
  const i64 room = run.scratch_bytes / 4 / ld, most = room < kRows ? room : kRows;
  if (most < 1) __builtin_trap();  // the plan gives room for 16 rows of every weight's K
  for (Share share; take(run, 0, count, share);) {
    for (i64 first = share.begin; first < share.end; first += most) {
      const i64 n = share.end - first < most ? share.end - first : most;
      Tile tile = {data, ld, n, first, K, 0};
      for (i64 r = 0; r < n; r++) {
        const float* from = src + (first + r) * args[3];
        for (i64 k = 0; k < K; k += 16) simd::store_n(data + r * ld + k, simd::load_n(from + k, K - k), K - k);
      }
      const i64* op = args + 5;
      for (i64 i = 0; i < args[4]; i++, op += 2 + op[1]) reinterpret_cast<TileFn>(op[0])(op + 2, run, tile);
    }
  }
}

}  // namespace

OCTAVO_ENTRIES(rows, {"rows", OCTAVO_FN(rows)})

OCTAVO_END
