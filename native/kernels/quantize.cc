// Tile op "tile.quantize": the tile's columns become a piece of the rows of activations that a later linear reads. Groups
// do not straddle tiles: col0 and cols are multiples of the span.
#include "quantize_row.h"

OCTAVO_BEGIN
namespace {

// A tile that goes to `acts`, rows `stride` apart. Rows by 16, since a tile is often one group wide.
void by_groups(const Tile& tile, uint8_t* acts, i64 stride) {
  for (i64 r = 0; r < tile.rows; r += 16) {
    for (i64 c = 0; c < tile.cols; c += 32) {
      quantize_groups(tile.rows - r < 16 ? tile.rows - r : 16, [&](i64 i) {
        return GroupPlace{tile.data + (r + i) * tile.ld + c, act_groups_of(acts + (r + i) * stride) + (tile.col0 + c) / 32};
      });
    }
  }
}

// The same with one scale for 8 groups: two rows at a time.
void by_supers(const Tile& tile, uint8_t* acts, i64 stride, i64 K) {
  for (i64 r = 0; r < tile.rows; r += 2) {
    for (i64 c = 0; c < tile.cols; c += 256) {
      quantize_supers(tile.rows - r < 2 ? 8 : 16, K / 32, [&](i64 i) {
        const i64 row = r + i / 8, column = c + i % 8 * 32;
        return GroupPlace{tile.data + row * tile.ld + column, act_groups_of(acts + row * stride) + (tile.col0 + column) / 32};
      });
    }
  }
}

// 0 acts ptr 1 K of the consumer 2 span
void quantize(const i64* args, const Run&, Tile& tile) {
  const i64 stride = act_row_bytes(args[1], args[2]);
  uint8_t* acts = reinterpret_cast<uint8_t*>(args[0]) + tile.row0 * stride;
  if (args[2] == 32) return by_groups(tile, acts, stride);
  by_supers(tile, acts, stride, args[1]);
}

}  // namespace

OCTAVO_ENTRIES(quantize, {"tile.quantize", OCTAVO_FN(quantize)})

OCTAVO_END
