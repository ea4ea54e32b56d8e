#include "team.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace octavo {

namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// `pause` takes about 40 ns here (Zen 4 and 5: 60-70 cycles with the loop around it).
constexpr int kBarrierSpins = 2000;  // about 80 us: longer than any phase's imbalance that is not a preemption
constexpr int kIdleSpins = 2500;     // about 100 us between two steps of a busy engine
constexpr int kYields = 64;          // gives the core to whoever preempted us before the kernel is asked to sleep

void futex_wait(std::atomic<uint32_t>& word, uint32_t seen) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}

void futex_wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, 0x7fffffff, nullptr, nullptr, 0);
}

}  // namespace

void Team::Gate::open() {
  generation.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers.load(std::memory_order_seq_cst) != 0) futex_wake_all(generation);
}

void Team::Gate::wait(uint32_t seen, int spins) {
  for (int i = 0; i < spins; i++) {
    if (generation.load(std::memory_order_acquire) != seen) return;
    relax();
  }
  for (int i = 0; i < kYields; i++) {
    if (generation.load(std::memory_order_acquire) != seen) return;
    sched_yield();
  }
  sleepers.fetch_add(1, std::memory_order_seq_cst);
  while (generation.load(std::memory_order_seq_cst) == seen) futex_wait(generation, seen);
  sleepers.fetch_sub(1, std::memory_order_seq_cst);
}

Team::Team(int threads) : size_(threads < 1 ? 1 : threads) {
  for (int thread = 1; thread < size_; thread++) threads_.emplace_back([this, thread] { follow(thread); });
}

Team::~Team() {
  ending_.store(true);
  start_.open();
  for (std::thread& thread : threads_) thread.join();
}

void Team::follow(int thread) {
  uint32_t seen = 0;
  for (;;) {
    start_.wait(seen, kIdleSpins);
    seen++;
    if (ending_.load()) return;
    work_(argument_, thread);
    barrier();
  }
}

void Team::run(Work work, void* argument) {
  work_ = work;
  argument_ = argument;
  start_.open();
  work(argument, 0);
  barrier();
}

void Team::barrier() {
  if (size_ == 1) return;
  const uint32_t seen = inner_.generation.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    inner_.open();
  } else {
    inner_.wait(seen, kBarrierSpins);
  }
}

}  // namespace octavo
