// Large regions: anonymous mappings on huge pages where the kernel gives them, counted by kind so that the plan can be
// compared with what was really taken.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace octavo {

struct Region {
  std::string kind;
  uint8_t* address;
  size_t bytes;   // asked for
  size_t mapped;  // rounded up to pages
};

class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory();

  // Index of a new zeroed region of `bytes` (at least 64-byte aligned). Throws std::bad_alloc.
  int allocate(const std::string& kind, size_t bytes);
  // Puts the first `bytes` of a file in place of a region's pages, read-only and shared with every process that does the
  // same; the address stays. The file must have them: reading past its end is SIGBUS. Throws std::runtime_error, and
  // leaves zeroed memory then.
  void map_file(int index, int descriptor, size_t bytes);
  void release(int index);
  const Region& region(int index) const;
  int count() const { return static_cast<int>(regions_.size()); }
  std::map<std::string, size_t> by_kind() const;

 private:
  std::vector<Region> regions_;
};

}  // namespace octavo
