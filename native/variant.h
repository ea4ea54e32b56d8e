// How a kernel file is compiled once per ISA. CMake passes -DOCTAVO_VARIANT=<portable|avx2|avx512|avx512bf16> and the flags
// of that ISA; everything a kernel file defines stands in the variant's own namespace, so that no symbol is shared.
// A file `kernels/x.cc` ends with OCTAVO_ENTRIES(x, {"name", address}, ...); variant.cc collects them.
#pragma once
#include "kernel.h"

#define OCTAVO_BEGIN namespace octavo { namespace OCTAVO_VARIANT {
#define OCTAVO_END } }
#define OCTAVO_ENTRIES(file, ...)                                       \
  extern const Entry file##_entries[] = {__VA_ARGS__};                  \
  extern const i64 file##_entry_count = sizeof(file##_entries) / sizeof(Entry);
#define OCTAVO_FN(f) reinterpret_cast<const void*>(&f)
