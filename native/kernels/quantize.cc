// Tile op "tile.quantize": the tile's columns become a piece of the rows of activations that a later linear reads. Groups
// of 32 do not straddle tiles: col0 and cols are multiples of 32.
#include "quantize_row.h"

OCTAVO_BEGIN
namespace {

// 0 acts ptr 1 K of the consumer
// Rows by 16, since a tile is often one group wide.
void quantize(const i64* args, const Run&, Tile& tile) {
  const i64 K = args[1], stride = act_row_bytes(K);
  uint8_t* acts = reinterpret_cast<uint8_t*>(args[0]) + tile.row0 * stride;
  for (i64 r = 0; r < tile.rows; r += 16) {
    for (i64 c = 0; c < tile.cols; c += 32) {
      quantize_groups(tile.rows - r < 16 ? tile.rows - r : 16, [&](i64 i) {
        return GroupPlace{tile.data + (r + i) * tile.ld + c, act_groups_of(acts + (r + i) * stride) + (tile.col0 + c) / 32};
      });
    }
  }
}

}  // namespace

OCTAVO_ENTRIES(quantize, {"tile.quantize", OCTAVO_FN(quantize)})

OCTAVO_END
