#include "isa.h"

#include <stdexcept>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "build.h"

namespace octavo {

// OCTAVO_VARIANT_LIST(X) comes from CMake (build.h): X(avx512bf16) X(avx512) ..., best first.
#define OCTAVO_DECLARE(name) \
  namespace name {           \
  const Variant* variant();  \
  }
OCTAVO_VARIANT_LIST(OCTAVO_DECLARE)
#undef OCTAVO_DECLARE

namespace {

// The matrix unit's registers are 8 KiB a thread: the system keeps them only for processes that ask.
bool matrix_unit_ready() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned a, b, c, d;
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kTile | kInt8)) != (kTile | kInt8)) return false;
  constexpr long kAsk = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

// The kernels of avx512bf16, but for those that have another form for the matrix unit: "NAME.matrix" in place of "NAME".
const Variant* with_matrix_unit(const Variant& variant) {
  static const std::vector<Entry> entries = [&] {
    std::vector<Entry> all(variant.entries, variant.entries + variant.count);
    for (Entry& entry : all) {
      const void* form = find_entry(variant, entry.name + std::string(".matrix"));
      if (form != nullptr) entry.address = form;
    }
    return all;
  }();
  static const Variant made = {kMatrixVariant, entries.data(), variant.count};
  return &made;
}

}  // namespace

std::vector<const Variant*> built_variants() {
  std::vector<const Variant*> all;
#define OCTAVO_COLLECT(name) all.push_back(name::variant());
  OCTAVO_VARIANT_LIST(OCTAVO_COLLECT)
#undef OCTAVO_COLLECT
  for (const Variant* variant : all) {
    if (variant->name != std::string("avx512bf16")) continue;
    all.insert(all.begin(), with_matrix_unit(*variant));
    break;
  }
  return all;
}

bool processor_runs(const std::string& variant) {
  if (variant == "portable") return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  if (variant == "avx2") return avx2;
  if (variant == "avx512") return avx512;
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (variant == "avx512bf16") return bf16;
  if (variant == kMatrixVariant) return bf16 && matrix_unit_ready();
#endif
  return false;
}

const Variant* choose_variant(const std::string& wanted) {
  std::string possible;
  for (const Variant* variant : built_variants()) {
    if (!processor_runs(variant->name)) continue;
    if (wanted.empty() || wanted == variant->name) return variant;
    possible += possible.empty() ? "" : ", ";
    possible += variant->name;
  }
  throw std::invalid_argument("OCTAVO_ISA '" + wanted + "' is not built or not supported by this processor; possible: " + possible);
}

const void* find_entry(const Variant& variant, const std::string& name) {
  for (i64 i = 0; i < variant.count; i++)
    if (name == variant.entries[i].name) return variant.entries[i].address;
  return nullptr;
}

}  // namespace octavo
