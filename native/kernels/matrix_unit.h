// The matrix unit of a processor (AMX): eight registers of up to 16 rows x 64 bytes. Included where a kernel uses it; knows no
// kernel. Instructions are written as assembly: gcc's intrinsics do not order them behind the stores of what they load.
#pragma once
#include "../simd/simd.h"

#if HAS_MATRIX_TILES
OCTAVO_BEGIN
namespace {

constexpr int kMatrixRows = 16;

// The shapes of the registers. Loading them clears the registers and is slow, some 100 cycles.
struct MatrixShapes {
  alignas(64) uint8_t palette[64] = {1};
  void shape(int tile, int rows, int bytes) {
    palette[16 + 2 * tile] = static_cast<uint8_t>(bytes);
    palette[48 + tile] = static_cast<uint8_t>(rows);
  }
  void load() const { asm volatile("ldtilecfg %0" : : "m"(palette) : "memory"); }
  // Registers in use are saved with every change of thread.
  static void release() { asm volatile("tilerelease" : : : "memory"); }
};

#define OCTAVO_TILE_ZERO(t) asm volatile("tilezero %%tmm" #t ::: "memory")
#define OCTAVO_TILE_LOAD(t, from, stride) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"(from), "r"(static_cast<i64>(stride)) : "memory")
#define OCTAVO_TILE_STORE(t, to, stride) \
  asm volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"(to), "r"(static_cast<i64>(stride)) : "memory")
// c += a * b: bf16 pairs; signed bytes with signed or unsigned ones.
#define OCTAVO_TILE_BF16(c, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")
#define OCTAVO_TILE_SIGNED(c, a, b) asm volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")
#define OCTAVO_TILE_UNSIGNED(c, a, b) asm volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")

}  // namespace
OCTAVO_END
#endif
