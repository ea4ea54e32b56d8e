// One variant's table: the entries of every kernel file, collected once. Compiled once per ISA.
#include "variant.h"

#include "build.h"

OCTAVO_BEGIN

// OCTAVO_KERNEL_FILES is the list of kernel files without their ending, from CMake (build.h): X(attention) X(linear) ...
#define X(file)                       \
  extern const Entry file##_entries[]; \
  extern const i64 file##_entry_count;
OCTAVO_KERNEL_FILES
#undef X

namespace {
constexpr i64 kMaxEntries = 256;
Entry table[kMaxEntries];

#define OCTAVO_TEXT(x) #x
#define OCTAVO_NAME(x) OCTAVO_TEXT(x)
Variant self = {OCTAVO_NAME(OCTAVO_VARIANT), table, 0};

void add(const Entry* entries, i64 count) {
  for (i64 i = 0; i < count && self.count < kMaxEntries; i++) table[self.count++] = entries[i];
}
}  // namespace

const Variant* variant() {
  if (self.count == 0) {
#define X(file) add(file##_entries, file##_entry_count);
    OCTAVO_KERNEL_FILES
#undef X
  }
  return &self;
}

OCTAVO_END
