#include "isa.h"

#include <cstring>
#include <stdexcept>

#include "build.h"

namespace octavo {

// OCTAVO_VARIANT_LIST(X) comes from CMake (build.h): X(avx512bf16) X(avx512) ..., best first.
#define OCTAVO_DECLARE(name) \
  namespace name {           \
  const Variant* variant();  \
  }
OCTAVO_VARIANT_LIST(OCTAVO_DECLARE)
#undef OCTAVO_DECLARE

std::vector<const Variant*> built_variants() {
  std::vector<const Variant*> all;
#define OCTAVO_COLLECT(name) all.push_back(name::variant());
  OCTAVO_VARIANT_LIST(OCTAVO_COLLECT)
#undef OCTAVO_COLLECT
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
  if (variant == "avx512bf16") return avx512 && __builtin_cpu_supports("avx512bf16");
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
