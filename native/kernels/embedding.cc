// Kernel "embedding": row r becomes a column of the weight, dequantized and scaled: that of its id, of its position, or of
// its part of a pair of texts. A row is a unit of work. The weight may be the packing of a tied head; columns are read one
// at a time.
#include "../simd/simd.h"

OCTAVO_BEGIN
namespace {

enum Index : i64 { kIds, kPositions, kParts };

inline i64 column_of(const Run& run, i64 index, i64 row) {
  const i64 slot = run.step->row_slot[row], position = run.step->row_pos[row];
  if (index == kPositions) return position;
  if (index == kParts) return position >= run.slots->second[slot];
  return run.slots->ids[slot * run.slots->L + position];
}

// 0 rows[dim] 1 K 2 weight ptr 3 Format ptr 4 out ptr f32 [rows][K] 5 scale f 6 Index
void embedding(const i64* args, const Run& run) {
  const i64 rows = run.dims[args[0]], K = args[1];
  const uint8_t* weight = reinterpret_cast<const uint8_t*>(args[2]);
  const Format& format = *reinterpret_cast<const Format*>(args[3]);
  float* out = reinterpret_cast<float*>(args[4]);
  const float scale = float_arg(args[5]);
  for (Share share; take(run, 0, rows, share);) {
    for (i64 r = share.begin; r < share.end; r++) {
      const i64 id = column_of(run, args[6], r);
      float* x = out + r * K;
      format.column(weight + id / 32 * format.panel_bytes(K), K, static_cast<int>(id % 32), x);
      if (scale != 1.0f) {
        for (i64 k = 0; k < K; k++) x[k] *= scale;
      }
    }
  }
}

}  // namespace

OCTAVO_ENTRIES(embedding, {"embedding", OCTAVO_FN(embedding)})

OCTAVO_END
