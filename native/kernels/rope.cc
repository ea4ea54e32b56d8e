// Row ops between the QKV product and attention: rotation by position, and writing K and V into their pages. Both are
// epilogues of a linear and work on a tile of whole heads. Knows nothing of where tables or pages come from.
//
// Whole pages of bf16 are written by vectors, 16 tokens at once; token by token (stores of 4 bytes for K, of 2 for V) took
// 18 cycles a vector of 16 values on a Zen 5, 1 ms more of a prefill of 512 (SmolLM2: 101.2 against 102.2 ms in turns).
#include "../simd/simd.h"

OCTAVO_BEGIN
namespace {

using namespace simd;

// "tile.rope"  0 cos ptr f32 [positions][rotary/2] 1 sin ptr 2 head_dim 3 rotary
// With a = x[i], b = x[i + rotary/2]: x[i] = fma(a, cos, -(b * sin)), x[i + rotary/2] = fma(b, cos, a * sin).
static void rope(const i64* args, const Run& run, Tile& tile) {
  const i64 head_dim = args[2], half = args[3] / 2;
  for (i64 r = 0; r < tile.rows; r++) {
    const i64 position = run.step->row_pos[tile.row0 + r];
    const float* cos = reinterpret_cast<const float*>(args[0]) + position * half;
    const float* sin = reinterpret_cast<const float*>(args[1]) + position * half;
    for (i64 h = 0; h < tile.cols; h += head_dim) {
      float* x = tile.data + r * tile.ld + h;
      for (i64 i = 0; i < half; i += 16) {
        const i64 n = half - i;  // the last step may be short: head_dim 80 has half 40
        const F a = load_n(x + i, n), b = load_n(x + half + i, n), c = load_n(cos + i, n), s = load_n(sin + i, n);
        store_n(x + i, fma(a, c, neg(mul(b, s))), n);
        store_n(x + half + i, fma(b, c, mul(a, s)), n);
      }
    }
  }
}

// K [head_dim/2][16][2] of bf16: token `at` of each pair of columns.
static inline void write_k(uint16_t* k, const float* x, i64 head_dim, int at) {
  uint32_t* out = reinterpret_cast<uint32_t*>(k) + at;
  for (i64 d = 0; d < head_dim; d += 16) {
    alignas(32) uint16_t b[16];
    store_bf16(b, load(x + d));
    for (int i = 0; i < 8; i++) out[(d / 2 + i) * kPage] = b[2 * i] | static_cast<uint32_t>(b[2 * i + 1]) << 16;
  }
}

// V [8 pairs of tokens][head_dim][2] of bf16. Only the token's own halves of the words are touched: the other token of a
// pair may be another thread's row.
static inline void write_v(uint16_t* v, const float* x, i64 head_dim, int at) {
  uint16_t* out = v + at / 2 * head_dim * 2 + at % 2;
  for (i64 d = 0; d < head_dim; d += 16) {
    alignas(32) uint16_t b[16];
    store_bf16(b, load(x + d));
    for (int i = 0; i < 16; i++) out[(d + i) * 2] = b[i];
  }
}

// The top half of a lane is its bf16, rounded as by store_bf16.
static inline I rounded_bf16(F a) {
  const I u = as_i(a);
  return select_i(eq(a, a), add_i(add_i(u, seti(0x7fff)), and_i(shr_i<16>(u), seti(1))), or_i(u, seti(0x400000)));
}

// All 16 tokens of a page, `ld` floats apart: whole vectors instead of words.
static inline void write_page_k(uint16_t* k, const float* x, i64 ld, i64 head_dim) {
  for (i64 d = 0; d < head_dim; d += 16) {
    alignas(64) uint16_t b[kPage][16];
    for (int t = 0; t < kPage; t++) store_bf16(b[t], load(x + t * ld + d));
    transpose_pairs(b[0], k + d * kPage);
  }
}
static inline void write_page_v(uint16_t* v, const float* x, i64 ld, i64 head_dim) {
  const I high = seti(static_cast<int32_t>(0xffff0000u));
  for (int t = 0; t < kPage; t += 2, x += 2 * ld)
    for (i64 d = 0; d < head_dim; d += 16, v += 32)
      storei(v, or_i(shr_i<16>(rounded_bf16(load(x + d))), and_i(rounded_bf16(load(x + ld + d)), high)));
}

static inline void write_float(float* page, const float* x, i64 head_dim, int at, bool v) {
  if (v)
    for (i64 d = 0; d < head_dim; d += 16) store(page + at * head_dim + d, load(x + d));
  else
    for (i64 d = 0; d < head_dim; d++) page[d * kPage + at] = x[d];
}

// The order of float pages.
static inline void write_half(uint16_t* page, const float* x, i64 head_dim, int at, bool v) {
  for (i64 d = 0; d < head_dim; d += 16) {
    if (v) {
      store_f16(page + at * head_dim + d, load(x + d));
      continue;
    }
    alignas(32) uint16_t h[16];
    store_f16(h, load(x + d));
    for (int i = 0; i < 16; i++) page[(d + i) * kPage + at] = h[i];
  }
}

// Codes in the order of bf16 pages, then the scales (kernel.h). Every byte is stored alone: no other row's is touched.
static inline void write_int8(uint8_t* head, const float* x, i64 head_dim, int at, bool v) {
  F most = zero(), broken = zero();
  for (i64 d = 0; d < head_dim; d += 16) {
    most = max(most, abs(load(x + d)));
    broken = add(broken, mul(load(x + d), zero()));
  }
  const float top = reduce_max(most);
  const bool finite = reduce_add(broken) == 0, codes = finite && top >= 1e-36f;  // 127 / less would overflow
  const F inverse = set1(codes ? 127.0f / top : 0.0f);
  int8_t* const out = reinterpret_cast<int8_t*>(head) + (v ? kPage * head_dim + at / 2 * 2 * head_dim + at % 2 : at * 2);
  for (i64 d = 0; d < head_dim; d += 16) {
    alignas(64) int32_t c[16];
    storei(c, codes ? to_i(mul(load(x + d), inverse)) : zeroi());
    for (int i = 0; i < 16; i++) out[v ? (d + i) * 2 : (d + i) / 2 * 2 * kPage + i % 2] = static_cast<int8_t>(c[i]);
  }
  float* const scale = reinterpret_cast<float*>(head + 2 * kPage * head_dim) + (v ? kPage : 0);
  scale[at] = codes ? top / 127.0f : finite ? 0.0f : __builtin_inff();
}

// "tile.kv_write"  0 group 1 layer 2 which (0: K, 1: V). Rounds to the dtype of the group, to nearest even.
static void kv_write(const i64* args, const Run& run, Tile& tile) {
  const KvGroup& group = run.groups[args[0]];
  const Slots& slots = *run.slots;
  const bool v = args[2] != 0;
  const int32_t *slot_of = run.step->row_slot + tile.row0, *position_of = run.step->row_pos + tile.row0;
  for (i64 r = 0, rows; r < tile.rows; r += rows) {
    const i64 slot = slot_of[r], position = position_of[r], end = r + kPage - 1;
    const bool whole = group.dtype == kKvBf16 && position % kPage == 0 && end < tile.rows && slot_of[end] == slot &&
                       position_of[end] == position + kPage - 1;
    rows = whole ? kPage : 1;
    const i64 page = slots.page[(slot * slots.G + group.index) * slots.P + position / kPage];
    if (page < 0 || page >= group.pages) __builtin_trap();  // a row without a page: a fault of the engine
    const int at = static_cast<int>(position % kPage);
    for (i64 c = 0; c < tile.cols; c += group.head_dim) {
      const i64 head = (tile.col0 + c) / group.head_dim;
      uint8_t* const base = group.pool + page * group.page_bytes + args[1] * group.layer_bytes + head * group.head_bytes;
      uint8_t* const to = base + (v ? group.head_bytes / 2 : 0);
      const float* x = tile.data + r * tile.ld + c;
      if (group.dtype == kKvInt8)
        write_int8(base, x, group.head_dim, at, v);
      else if (group.dtype == kKvFloat)
        write_float(reinterpret_cast<float*>(to), x, group.head_dim, at, v);
      else if (group.dtype == kKvHalf)
        write_half(reinterpret_cast<uint16_t*>(to), x, group.head_dim, at, v);
      else if (whole)
        (v ? write_page_v : write_page_k)(reinterpret_cast<uint16_t*>(to), x, tile.ld, group.head_dim);
      else if (v)
        write_v(reinterpret_cast<uint16_t*>(to), x, group.head_dim, at);
      else
        write_k(reinterpret_cast<uint16_t*>(to), x, group.head_dim, at);
    }
  }
}

}  // namespace

OCTAVO_ENTRIES(rope, {"tile.rope", OCTAVO_FN(rope)}, {"tile.kv_write", OCTAVO_FN(kv_write)})
OCTAVO_END
