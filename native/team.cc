#include "team.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "cores.h"

namespace octavo {

namespace {

using State = uint64_t;
constexpr State kOver = 1u << 31;    // no phase: the team is idle
constexpr State kTaken = 1u << 30;   // threads enter and leave; else all arrive
constexpr State kClosed = 1u << 29;  // all have left; nobody enters any more
constexpr State kInside = 0xffff;

uint32_t phase_of(State state) { return static_cast<uint32_t>(state >> 32); }
uint32_t after(uint32_t phase) { return phase == 0xffffffffu ? 1 : phase + 1; }  // 0 stands for none
State made(uint32_t phase, State flags) { return static_cast<State>(phase) << 32 | flags; }

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// `pause` takes 24 ns here (Zen 5; 40 on Zen 4: 60-70 cycles with the loop around it).
constexpr int kBarrierSpins = 2000;  // about 50 us: longer than most imbalances that are no preemption
constexpr int kIdleSpins = 2500;     // about 60 us between two steps of a busy engine
// About 2.5 us: a thread that runs has run for longer meanwhile (its clock: 1 ns). One look in 500 finds the clock of a running
// thread standing still (an interrupt, say), and one that was woken needs 20 to 50 us to run: 100 us of such looks count.
constexpr int kProbeSpins = 100, kProbes = 40;
constexpr int kReturnSpins = 400;    // about 10 us for the caller to see that the run is over
constexpr int kYields = 64;          // gives the core to whoever preempted us before the kernel is asked to sleep
constexpr long kNap = 500000;        // 500 us: a sleeping thread looks after late ones that often

// Two looks at the state lie further apart than this only if the thread had no core meanwhile: a slice of another process
// takes a millisecond or more, an interrupt tens of microseconds.
constexpr int64_t kLost = 200'000;

// For how long phases are taken after a thread was late: three time slices of a busy machine, and twice as long each time
// that a thread is late again just after phases were divided: a try costs a slice. Taken phases make a decode step of one
// sequence a third longer, so one slice of somebody else's should not cost many of ours.
constexpr int64_t kPatience = 10'000'000, kMostPatience = 3'200'000'000;

void futex_wait(void* word, uint32_t seen, long nap) {
  const timespec time = {0, nap};
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, nap > 0 ? &time : nullptr, nullptr, 0);
}

void futex_wake_all(void* word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 0x7fffffff, nullptr, nullptr, 0); }

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the futex word is the upper half of the state");
void* upper_half(std::atomic<State>& state) { return reinterpret_cast<char*>(&state) + 4; }

}  // namespace

Team::Team(int threads)
    : size_(threads < 1 ? 1 : threads), cores_(cores_allowed()), seats_(new Seat[static_cast<size_t>(size_)]) {
  state_.store(made(1, kOver));
  for (int thread = 1; thread < size_; thread++) threads_.emplace_back([this, thread] { follow(thread); });
}

Team::~Team() {
  ending_.store(true);
  open(made(after(phase_of(state_.load())), kOver));
  for (std::thread& thread : threads_) thread.join();
}

void Team::run(Work work, Next next, void* argument) {
  if (size_ == 1) {
    do work(argument, 0, false);
    while (next(argument));
    return;
  }
  work_ = work;
  next_ = next;
  argument_ = argument;
  seats_[0].id.store(this_thread(), std::memory_order_relaxed);
  const uint32_t before = phase_of(state_.load());
  open(made(after(before), taken_now() ? kTaken : 0));
  returned_.store(work_through(0, before));
}

void Team::follow(int thread) {
  seats_[thread].id.store(this_thread(), std::memory_order_relaxed);
  uint32_t seen = 1;
  while (!ending_.load()) seen = work_through(thread, seen);
}

// Phases after `seen` until the run is over; gives the phase number that says so.
uint32_t Team::work_through(int thread, uint32_t seen) {
  Seat& seat = seats_[thread];
  for (bool idle = true;; idle = false) {
    const State state = wait_for_change(thread, seen, idle && thread != 0);
    const uint32_t phase = phase_of(state);
    if (state & kOver) return phase;
    if (state & kTaken) {
      if (phase != after(seen) && !idle && seat.lost) late();  // else the phase was over before it could enter
      seen = phase;
      if (thread >= cores_) {
        seat.finished.store(phase, std::memory_order_relaxed);
        sleep_until_divided();
        continue;
      }
      if (!enter(phase)) continue;
      seat.entered.store(phase, std::memory_order_relaxed);
      work_(argument_, thread, true);
      seat.finished.store(phase, std::memory_order_relaxed);
      if (leave()) close(thread, state);
    } else {
      seen = phase;
      work_(argument_, thread, false);
      seat.finished.store(phase, std::memory_order_relaxed);
      if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        close(thread, state);
      }
    }
  }
}

bool Team::enter(uint32_t phase) {
  State state = state_.load(std::memory_order_acquire);
  while (phase_of(state) == phase && !(state & kClosed)) {
    if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) return true;
  }
  return false;
}

// Whether this thread was the last one inside. Whoever leaves has found all units taken, by threads that were inside.
bool Team::leave() {
  State state = state_.load(std::memory_order_relaxed);
  for (;;) {
    const bool last = (state & kInside) == 1;
    const State less = state - 1;
    if (state_.compare_exchange_weak(state, last ? less | kClosed : less, std::memory_order_acq_rel)) return last;
  }
}

// By one thread, when the phase has ended.
void Team::close(int thread, State state) {
  const uint32_t phase = after(phase_of(state));
  if (next_(argument_)) {
    open(made(phase, taken_now() ? kTaken : 0));
    return;
  }
  open(made(phase, kOver | (state & kTaken)));
  if (thread == 0) return;
  for (int i = 0; i < kReturnSpins; i++) {
    if (returned_.load(std::memory_order_relaxed) == phase) return;
    relax();
  }
  if (!runs(seats_[0])) give_core(thread, seats_[0]);
}

void Team::open(State state) {
  state_.store(state, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) != 0) futex_wake_all(upper_half(state_));
  if (parked_.load(std::memory_order_seq_cst) != 0 && (!(state & kTaken) || ending_.load())) {
    divided_.fetch_add(1);
    futex_wake_all(&divided_);
  }
}

void Team::sleep_until_divided() {
  parked_.fetch_add(1, std::memory_order_seq_cst);
  const uint32_t seen = divided_.load();
  while (divided_.load() == seen && (state_.load() & kTaken) && !ending_.load()) futex_wait(&divided_, seen, 0);
  parked_.fetch_sub(1);
}

// Gives the state as soon as its phase is not `seen`.
Team::State Team::wait_for_change(int thread, uint32_t seen, bool idle) {
  Seat& seat = seats_[thread];
  State state = state_.load(std::memory_order_acquire);
  const bool taken = state & kTaken;
  const int spins = idle ? kIdleSpins : kBarrierSpins;
  seat.lost = false;
  if (taken) seat.looked = nanoseconds();
  for (int i = 0; i < spins; i++) {
    if (phase_of(state) != seen) return state;
    relax();
    state = state_.load(std::memory_order_acquire);
    if (taken) look(seat);
  }
  for (;;) {
    if (!idle) look_after(thread, seen, state);
    for (int i = 0; i < kYields; i++) {
      state = state_.load(std::memory_order_acquire);
      if (taken) look(seat);
      if (phase_of(state) != seen) return state;
      sched_yield();
    }
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    if (phase_of(state_.load(std::memory_order_seq_cst)) == seen) futex_wait(upper_half(state_), seen, idle ? 0 : kNap);
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    state = state_.load(std::memory_order_acquire);
    if (taken) look(seat);
    if (phase_of(state) != seen) return state;
  }
}

void Team::look(Seat& seat) {
  const int64_t now = nanoseconds();
  seat.lost = seat.lost || now - seat.looked > kLost;
  seat.looked = now;
}

// Gives the core to a thread that the phase waits for and that has none.
void Team::look_after(int thread, uint32_t phase, State state) {
  for (int other = 0; other < size_; other++) {
    Seat& seat = seats_[other];
    if (other == thread || seat.finished.load(std::memory_order_relaxed) == phase) continue;
    if ((state & kTaken) && seat.entered.load(std::memory_order_relaxed) != phase) continue;
    if (runs(seat)) continue;
    if (phase_of(state_.load(std::memory_order_relaxed)) == phase) give_core(thread, seat);
    return;
  }
}

bool Team::runs(const Seat& seat) const {
  const int id = seat.id.load(std::memory_order_relaxed);
  const int64_t before = time_run(id);
  if (before < 0) return true;
  for (int probe = 0; probe < kProbes; probe++) {
    for (int i = 0; i < kProbeSpins; i++) relax();
    if (time_run(id) > before) return true;
  }
  return false;
}

void Team::give_core(int thread, Seat& to) {
  late();
  if (to.helped.exchange(true, std::memory_order_acquire)) return;
  rescues_.fetch_add(1, std::memory_order_relaxed);
  const int id = to.id.load(std::memory_order_relaxed), mine = this_core(), its = core_of(id);
  if (its != mine) move_to_core(id, mine);
  to.helped.store(false, std::memory_order_release);
  // Two of us on one core: this one looks for another.
  move_to_core(seats_[thread].id.load(std::memory_order_relaxed), its != mine ? its : another_core(mine));
}

void Team::late() { suppose_late(0); }

void Team::suppose_late(int64_t at_least) {
  const int64_t now = nanoseconds(), ended = ended_.load(), patience = patience_.load();
  if (taken_until_.load() == 0) {
    const bool again = now - ended < patience;
    patience_.store(again ? (2 * patience < kMostPatience ? 2 * patience : kMostPatience) : kPatience);
  }
  const int64_t wait = patience_.load();
  taken_until_.store(now + (wait > at_least ? wait : at_least));
}

bool Team::taken_now() {
  const int64_t until = taken_until_.load(std::memory_order_relaxed);
  if (until == 0) return false;
  if (nanoseconds() < until) return true;
  ended_.store(until);
  taken_until_.store(0);
  return false;
}

void Team::barrier(int thread) {
  if (size_ == 1) return;
  const uint32_t seen = meetings_.load(std::memory_order_acquire);
  if (meeting_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    meeting_.store(0, std::memory_order_relaxed);
    meetings_.store(seen + 1, std::memory_order_release);
    return;
  }
  wait_inside(thread, [&] { return meetings_.load(std::memory_order_acquire) != seen; });
}

void Team::wait_done(int thread, const int64_t& done, int64_t units) {
  wait_inside(thread, [&] { return __atomic_load_n(&done, __ATOMIC_ACQUIRE) >= units; });
}

template <class Ready>
void Team::wait_inside(int thread, const Ready& ready) {
  for (;;) {
    for (int i = 0; i < kBarrierSpins; i++) {
      if (ready()) return;
      relax();
    }
    const State state = state_.load(std::memory_order_acquire);
    look_after(thread, phase_of(state), state);
    for (int i = 0; i < kYields; i++) {
      if (ready()) return;
      sched_yield();
    }
  }
}

}  // namespace octavo
