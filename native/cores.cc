#include "cores.h"

#include <chrono>

#if defined(__linux__)
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#endif

namespace octavo {

int64_t nanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

#if defined(__linux__)

namespace {
// Enough for 8,192 cores; the kernel refuses a mask shorter than its own.
struct Mask {
  unsigned long words[128];
  long bytes;  // that the kernel filled in; < 0: failed
};
Mask mask_of(int thread) {
  Mask mask{};
  mask.bytes = syscall(SYS_sched_getaffinity, thread, sizeof(mask.words), mask.words);
  return mask;
}
constexpr int kBits = 8 * sizeof(unsigned long), kCores = 128 * kBits;
bool allowed(const Mask& mask, int core) { return mask.words[core / kBits] >> core % kBits & 1; }
}  // namespace

int cores_allowed() {
  const Mask mask = mask_of(0);
  int count = 0;
  for (const unsigned long word : mask.words) count += __builtin_popcountl(word);
  return count > 0 ? count : 1;
}

int this_core() { return sched_getcpu(); }

int core_of(int thread) {
  char text[1024];
  snprintf(text, sizeof(text), "/proc/self/task/%d/stat", thread);
  const int file = open(text, O_RDONLY | O_CLOEXEC);
  if (file < 0) return -1;
  const ssize_t n = read(file, text, sizeof(text) - 1);
  close(file);
  text[n > 0 ? n : 0] = 0;
  const char* at = strrchr(text, ')');  // the name may hold anything; after it stand fields 3, 4, ..., and 39 is the core
  for (int field = 2; at != nullptr && field < 39; field++) at = strchr(at + 1, ' ');
  return at != nullptr ? atoi(at + 1) : -1;
}

int another_core(int core) {
  const Mask mask = mask_of(0);
  for (int i = 1; core >= 0 && i < kCores; i++) {
    if (allowed(mask, (core + i) % kCores)) return (core + i) % kCores;
  }
  return -1;
}

int this_thread() { return static_cast<int>(syscall(SYS_gettid)); }

int64_t time_run(int thread) {
  // The clock of a thread by its number: the kernel's MAKE_THREAD_CPUCLOCK(thread, CPUCLOCK_SCHED).
  const clockid_t clock = static_cast<clockid_t>((~static_cast<unsigned>(thread) << 3) | 6u);
  timespec time;
  return clock_gettime(clock, &time) == 0 ? time.tv_sec * int64_t{1000000000} + time.tv_nsec : -1;
}

void move_to_core(int thread, int core) {
  const Mask old = mask_of(thread);
  if (old.bytes < 0 || core < 0 || core >= kCores || !allowed(old, core)) return;
  Mask one{};
  one.words[core / kBits] = 1ul << core % kBits;
  const auto bytes = static_cast<size_t>(old.bytes);
  syscall(SYS_sched_setaffinity, thread, bytes, one.words);
  syscall(SYS_sched_setaffinity, thread, bytes, old.words);
}

#else

int cores_allowed() { return 1 << 16; }
int this_core() { return -1; }
int core_of(int) { return -1; }
int another_core(int) { return -1; }
int this_thread() { return 0; }
int64_t time_run(int) { return -1; }
void move_to_core(int, int) {}

#endif

}  // namespace octavo
