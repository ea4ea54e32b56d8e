// Tile op "tile.quantize": the tile's columns become a piece of the rows of activations that a later linear reads. Groups
// of 32 do not straddle tiles: col0 and cols are multiples of 32.
#include "quantize_row.h"

OCTAVO_BEGIN
namespace {

// 0 acts ptr 1 K of the consumer
void quantize(const i64* args, const Run&, Tile& tile) {
  const i64 K = args[1], stride = act_row_bytes(K);
  uint8_t* acts = reinterpret_cast<uint8_t*>(args[0]) + tile.row0 * stride;
  for (i64 r = 0; r < tile.rows; r++) {
    quantize_row(tile.data + r * tile.ld, K, acts + r * stride, tile.col0 / 32, (tile.col0 + tile.cols) / 32);
  }
}

}  // namespace

OCTAVO_ENTRIES(quantize, {"tile.quantize", OCTAVO_FN(quantize)})

OCTAVO_END
