// The late inputs of the sampler: masks of the rows whose ids a grammar chooses, which another process writes while a step
// runs, into a table that both map (src/octavo/grammar/table.py). Nothing of grammars is known here.
//
// The table: a line of 64 bytes for each slot, then a mask of `stride` bytes for each slot. What lies there is not ours: it is
// copied into the slot table, and counts if the line was the same before and after.
#pragma once
#include <sched.h>

#include <cstring>

#include "cores.h"
#include "kernel.h"

namespace octavo {

struct MaskLine {
  alignas(64) volatile i64 known;  // slots.grammar << 32 | ids after which the mask is; -1: none, or it is being written
  volatile i64 state;              // 0: ids may follow, 1: only an end may, 2: there is none, the grammar failed
};

// Nanoseconds that the rows of a chunk wait together: a tenth of the shortest step of a real model. On two cores at work the
// other process is asleep when it is told of an id, and awake long before the sampler is reached.
constexpr i64 kMaskWait = 300'000;
constexpr int32_t kHasMask = 1, kMaskLate = 2;  // slots.masked

class Masks {
 public:
  Masks() = default;
  Masks(const uint8_t* lines, i64 slots, i64 stride)
      : lines_(reinterpret_cast<const MaskLine*>(lines)), slots_(slots), stride_(stride) {}

  // For the logit rows [first, first + rows). A row whose mask does not come in time gives nothing (status 4 of the sampler),
  // and the engine has it computed again: others need not wait for it.
  void take(const Step& step, const Slots& slots, i64 first, i64 rows) const {
    i64 until = 0;
    for (i64 row = first; row < first + rows; row++) {
      const i64 slot = step.seq_slot[step.logit_seq[row]];
      if (step.logit_target[row] >= 0 || slots.grammar[slot] == 0) continue;
      bool there = copy(slots, slot);
      while (!there && lines_ != nullptr) {
        const i64 now = nanoseconds();
        if (until == 0) until = now + kMaskWait;
        if (now >= until) break;
        sched_yield();
        there = copy(slots, slot);
      }
      slots.masked[slot] = there ? kHasMask : kMaskLate;
    }
  }

 private:
  bool copy(const Slots& slots, i64 slot) const {
    if (slot >= slots_) return false;
    const MaskLine& line = lines_[slot];
    const i64 wanted = static_cast<i64>(slots.grammar[slot]) << 32 | slots.known[slot];
    if (line.known != wanted || line.state > 1) return false;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    const bool ends = line.state == 1;
    const auto* mask = reinterpret_cast<const uint8_t*>(lines_ + slots_) + slot * stride_;
    std::memcpy(slots.mask + slot * slots.V32, mask, static_cast<size_t>(slots.V32) * 4);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (line.known != wanted) return false;
    if (ends) slots.min_known[slot] = 0;  // nothing else may follow, so min_tokens cannot be had
    return true;
  }

  const MaskLine* lines_ = nullptr;
  i64 slots_ = 0, stride_ = 0;
};

}  // namespace octavo
