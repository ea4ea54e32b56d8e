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
constexpr int kMembersAt = 16, kMostMembers = 0x1fff;

uint32_t phase_of(State state) { return static_cast<uint32_t>(state >> 32); }
uint32_t after(uint32_t phase) { return phase == 0xffffffffu ? 1 : phase + 1; }  // 0 stands for none
int members_of(State state) { return static_cast<int>(state >> kMembersAt) & kMostMembers; }
State with(uint32_t phase, State flags) { return static_cast<State>(phase) << 32 | flags; }

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
    : size_(threads < 1 ? 1 : threads > kMostMembers ? kMostMembers : threads), cores_(cores_allowed()), first_by_(size_),
      seats_(new Seat[static_cast<size_t>(size_)]) {
  state_.store(with(1, kOver));
  for (int thread = 1; thread < size_; thread++) threads_.emplace_back([this, thread] { follow(thread); });
}

Team::~Team() {
  ending_.store(true);
  open(with(after(phase_of(state_.load())), kOver));
  for (std::thread& thread : threads_) thread.join();
}

void Team::run(Work work, Next next, void* argument, int members) {
  work_ = work;
  next_ = next;
  argument_ = argument;
  seats_[0].id.store(this_thread(), std::memory_order_relaxed);
  const uint32_t before = phase_of(state_.load());
  members = alone(0, before, members);
  if (members == 0) return;
  open(made(after(before), members));
  returned_.store(work_through(0, before));
}

// Phases for one thread, right here, until there is one for more; for how many, or 0 when the run is over. To those who
// wait for `phase` to change this thread is not done with it: they look after it.
int Team::alone(int thread, uint32_t phase, int members) {
  const auto is_alone = [&] { return members == 1 || (members > 1 && size_ == 1); };
  if (!is_alone()) return members;
  Seat& seat = seats_[thread];
  seat.finished.store(phase - 1, std::memory_order_relaxed);
  for (; is_alone(); members = next_(argument_)) work_(argument_, thread, 1, false);
  seat.finished.store(phase, std::memory_order_relaxed);
  return members;
}

// The state that opens a phase. For as many threads as there are at most; a taken one is for all that have a core.
Team::State Team::made(uint32_t phase, int members) {
  if (taken_now()) return with(phase, kTaken);
  return with(phase, static_cast<State>(members < size_ ? members : size_) << kMembersAt);
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
    if ((state & kTaken) && phase != after(seen) && !idle && seat.lost) late();  // else it was over before it could enter
    seen = phase;
    if (thread >= wanted(state)) {
      stand_by(thread);
    } else if (state & kTaken) {
      if (!enter(phase)) continue;
      seat.entered.store(phase, std::memory_order_relaxed);
      work_(argument_, thread, size_, true);
      seat.finished.store(phase, std::memory_order_relaxed);
      if (leave()) close(thread, state);
    } else {
      const int members = members_of(state);
      work_(argument_, thread, members, false);
      seat.finished.store(phase, std::memory_order_relaxed);
      if (arrived_.fetch_add(1, std::memory_order_acq_rel) == members - 1) {
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
  if (const int members = alone(thread, phase_of(state), next_(argument_))) {
    open(made(phase, members));
    return;
  }
  open(with(phase, kOver));
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
  if (first_by_.load(std::memory_order_seq_cst) < wanted(state)) {
    first_by_.store(size_, std::memory_order_seq_cst);
    calls_.fetch_add(1, std::memory_order_seq_cst);
    if (dozers_.load(std::memory_order_seq_cst) != 0) futex_wake_all(&calls_);
  }
}

// Threads below this number have a part in the phase; when the team ends, all are called.
int Team::wanted(State state) const {
  if (state & kOver) return ending_.load(std::memory_order_relaxed) ? size_ : 0;
  if (state & kTaken) return cores_ < size_ ? cores_ : size_;
  return members_of(state);
}

// Until a phase opens that wants this thread, or until it is called with others: then it looks again. Whoever opens a
// phase stores it before it reads first_by_; here first_by_ is set before the phase is read: one of the two sees the other.
void Team::stand_by(int thread) {
  const uint32_t seen = calls_.load(std::memory_order_seq_cst);
  int least = first_by_.load(std::memory_order_seq_cst);
  while (thread < least && !first_by_.compare_exchange_weak(least, thread, std::memory_order_seq_cst)) {
  }
  const auto called = [&] { return calls_.load(std::memory_order_seq_cst) != seen; };
  const auto dull = [&] {
    const State state = state_.load(std::memory_order_seq_cst);
    return thread >= wanted(state) && !((state & kOver) && ending_.load());
  };
  if (!dull()) return;
  const int spins = thread < cores_ ? kIdleSpins : 0;
  for (int i = 0; i < spins; i++, relax()) {
    if (called()) return;
  }
  dozers_.fetch_add(1, std::memory_order_seq_cst);
  while (!called()) futex_wait(&calls_, seen, 0);
  dozers_.fetch_sub(1, std::memory_order_seq_cst);
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
  for (int other = 0; other < wanted(state); other++) {
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
  const int members = members_of(state_.load(std::memory_order_relaxed));
  const uint32_t seen = meetings_.load(std::memory_order_acquire);
  if (meeting_.fetch_add(1, std::memory_order_acq_rel) == members - 1) {
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
