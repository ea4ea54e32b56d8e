// A step as a list of kernel calls: Programs loaded from images, run by the team in one native call.
//
// Machine owns the memory regions, the team, the loaded Programs and the views of step and slot table. It knows kernels
// by name only, and nothing of Python.
//
// Image of a Program: int64 words {kMagic, kAbi, kLayoutHash, number of nodes}, then for each node {name, region, wait, the
// words of Work, number of arguments}, then for each argument five words {kind, a, b, c, d}:
//   0 immediate  a: value
//   1 buffer     a: region, b: offset, c: bytes that will be used; becomes an address
//   2 dimension  ceil((a * symbol[b] + c) / d); becomes an index into Run.dims
//   3 entry      a: index of a name; becomes the address of that entry of the chosen variant
// Symbols: 0: T token rows, 1: S sequences, 2: R logit rows of the head chunk, 3: the constant 1.
//
// Tape: int64 triples {instruction, a, b}:
//   0 state   zero and copy the pages that the step names
//   1 run     Program a
//   2 chunks  Programs a (head) and b (sample) over the step's logit rows, kHeadRows at a time
//   3 loop    everything up to the matching end runs up to header.loop times
//   4 advance append sampled ids to the slots; leave the loop when a sequence ends, something arrived, or K is reached
//   5 end     of the loop
#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "isa.h"
#include "masks.h"
#include "memory.h"
#include "team.h"
#include "tuning.h"

namespace octavo {

constexpr i64 kHeadRows = 64;  // rows of one head chunk: bounds the logits buffer
enum Symbol : int { kRows = 0, kSeqs = 1, kLogitRows = 2, kOne = 3, kSymbols = 4 };

constexpr size_t kMaxDims = 64;  // different dimensions of a Program

struct Dim {
  i64 factor, symbol, add, divide;
  i64 value(const i64* symbols) const { return (factor * symbols[symbol] + add + divide - 1) / divide; }
};

struct LoadedNode {
  Kernel kernel;
  std::string name;
  i64 region;
  Work work;
  std::vector<i64> args;
  Kernel ahead_of_next = nullptr;  // NAME.ahead of the node that follows (kernel.h)
};

struct Program {
  std::vector<LoadedNode> nodes;
  std::vector<Dim> dims;
};

// Words shared with other processes, at the offsets of engine/flight_record.py, a cache line each. A machine without a
// control page uses its own.
struct Control {
  alignas(64) i64 reserved;
  alignas(64) volatile i64 arrived;   // the front counts up before it writes to the socket
  alignas(64) volatile i64 stop;      // not 0: leave at the next node, commit nothing
  alignas(64) volatile i64 progress;  // counts nodes; stands still when a kernel hangs
};
static_assert(offsetof(Control, arrived) == 64 && offsetof(Control, stop) == 128 && offsetof(Control, progress) == 192);

class Machine {
 public:
  Machine(const std::string& isa, int threads, size_t scratch_bytes);

  Memory memory;
  const Variant& variant() const { return *variant_; }
  int threads() const { return team_.size(); }
  Team& team() { return team_; }

  void bind_step(int region, const std::vector<i64>& offsets, i64 rows, i64 seqs, i64 results, i64 groups, i64 page_ops);
  void bind_slots(int region, const std::vector<i64>& offsets, i64 slots, i64 ids, i64 groups, i64 pages, i64 words);
  void bind_arena(int region);
  void bind_control(uint8_t* address) { control_ = reinterpret_cast<Control*>(address); }
  void bind_masks(const uint8_t* lines, i64 slots, i64 stride);
  // A paged group over a part of the pool: layout of one page as KvGroup says; `first_byte`: its place inside a page.
  void add_group(int region, i64 pages, i64 page_bytes, i64 first_byte, i64 layers, i64 kv_heads, i64 head_dim, i64 dtype,
                 i64 window);

  int load(const i64* image, size_t words, const std::vector<std::string>& names);
  // Runs the tape for the step that lies in flat memory. Returns 0, or 1 when it was stopped and committed nothing.
  int run(const i64* tape, size_t words);
  // Runs Programs outside a step, with all symbols = rows: ceilings, tests of kernels, verify.
  void run_nodes(const i64* tape, size_t words, i64 rows);
  // Sets a value (tuning.h). Not while a step runs.
  void tune(const std::string& name, i64 value) { octavo::tune(tuning_, costs_, *variant_, name, value); }
  i64 tuned(const std::string& name) { return octavo::tuned(tuning_, costs_, *variant_, name); }
  // Nanoseconds per node of the programs of the last run, when profiling is on: [program][node] flattened in load order. From
  // the end of the node before to the end of this one, by whichever thread was the last: not one thread's view.
  void profile(bool on);
  std::vector<i64> node_times() const;

 private:
  friend struct Pass;
  i64 programs() const { return static_cast<i64>(programs_.size()); }
  bool walk(const i64* tape, size_t words, const i64* symbols);  // whether it was stopped
  const Variant* variant_;
  Team team_;
  size_t scratch_bytes_;
  int scratch_region_;
  int arena_region_ = -1;
  std::vector<std::unique_ptr<Program>> programs_;
  std::vector<KvGroup> groups_;
  std::vector<uint8_t*> pools_;  // one per distinct pool region, with their page sizes
  std::vector<i64> pool_page_bytes_, pool_pages_;
  Step step_{};
  Slots slots_{};
  Masks masks_;
  Tuning tuning_;
  Costs costs_;
  Control own_control_{};
  Control* control_ = &own_control_;
  bool profiling_ = false;
  std::vector<std::vector<i64>> times_;
};

}  // namespace octavo
