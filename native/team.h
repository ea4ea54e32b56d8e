// The thread team: persistent threads that do the phases of a run together. Knows nothing of nodes or kernels.
//
// A phase is divided evenly among all threads and ends when all have arrived: a barrier. That is the fastest while every
// thread has its core. When a thread was seen to wait for a core while others waited for it, phases are *taken* for a
// while: a thread enters a phase if it is there, takes units of it piece by piece (kernel.h, take()), and the phase ends
// when its units are done and all who entered have left. A thread without a core misses phases and holds nobody up.
// A thread that loses its core in the middle of a phase does hold the others up; the first of them that has waited long
// enough to make sure gives it its own core and queues for the other one (cores.h).
//
// Waiting is spin, then rescue, then yield, then futex: a pure spin collapses when cores are taken by others, a pure sleep
// costs tens of microseconds at each of the hundreds of phases of a step. More threads than cores: the surplus sleeps while
// phases are taken.
//
// A divided phase is for as many of the threads as it is worth (next() says), the first ones; a phase for one is done at
// once by the thread that ended the phase before, without a barrier. The others spin, and later sleep, on a word of their own:
// were they to watch the phases too, each of them would fetch the line that the next phase is told in.
//
// Taking costs: with all phases taken a decode step of one sequence takes 2.58 ms, with them divided 1.96 (SmolLM2, Zen 5, 2
// threads, in turns; 32 sequences 13.5 and 12.7, a prompt of 512 the same), since pieces are short streams. So a thread counts as late only for what it cannot help: it
// had no core (two looks at the state far apart, or its clock standing still for long), not because a phase of one unit
// was over before it came. Before that rule one slice of another process was enough: the rescues and missed phases of
// taken phases kept themselves going, and a quiet machine decoded with phases taken nearly always.
//
// Measured on two cores of a Zen 5, SmolLM2, share of the quiet rate, before (divided always) and with this: one core taken by
// a busy loop: decode 1 0.29 and 0.87, decode 32 0.42 and 0.80, prefill 0.63 and 0.74; four threads: decode 1 0.26 and 1.00
// (docs/benchmarks/contention.md). With the rule: one core taken 0.88, 0.88, 0.78.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace octavo {

class Team {
 public:
  // A thread's part of a phase of `members`: 1 where it is alone, else its number is below them unless it is `taking`.
  using Work = void (*)(void* argument, int thread, int members, bool taking);
  // Between two phases, on one thread: how many threads, of size(), the next one is for; 0: the run is over.
  using Next = int (*)(void* argument);

  explicit Team(int threads);  // threads >= 1; the caller of run() is thread 0
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  ~Team();

  int size() const { return size_; }
  // A phase for `members` threads, then others until next() says that there is none. Not reentrant.
  void run(Work work, Next next, void* argument, int members);
  // Inside a phase that is divided: every thread that it is for must call it equally often.
  void barrier(int thread);
  // Inside a phase that is taken: waits until `done` has reached `units`.
  void wait_done(int thread, const int64_t& done, int64_t units);
  // Times that a waiting thread gave its core away: for tests and for whoever wonders about a slow machine.
  int64_t rescues() const { return rescues_.load(std::memory_order_relaxed); }
  // Phases are taken for the next `nanoseconds`, as after a late thread: for tests.
  void suppose_late(int64_t nanoseconds);

 private:
  // The phase in the upper half; flags, the threads that it is for, and those inside (only of a taken phase) in the lower.
  using State = uint64_t;
  struct alignas(64) Seat {
    std::atomic<uint32_t> entered{0}, finished{0};  // phases
    std::atomic<int> id{0};                         // the system's number of the thread
    std::atomic<bool> helped{false};                // somebody gives it a core just now
    int64_t looked = 0;                             // its own: when it last looked at the state of a taken phase
    bool lost = false;                              // its own: whether it had no core for a while since the last phase
  };

  void follow(int thread);
  uint32_t work_through(int thread, uint32_t seen);
  bool enter(uint32_t phase);
  bool leave();
  void close(int thread, State state);
  int alone(int thread, uint32_t phase, int members);
  State made(uint32_t phase, int members);
  void open(State state);
  int wanted(State state) const;
  void stand_by(int thread);
  State wait_for_change(int thread, uint32_t seen, bool idle);
  template <class Ready>
  void wait_inside(int thread, const Ready& ready);
  static void look(Seat& seat);
  void look_after(int thread, uint32_t phase, State state);
  bool runs(const Seat& seat) const;
  void give_core(int thread, Seat& to);
  void late();
  bool taken_now();

  const int size_, cores_;
  alignas(64) std::atomic<State> state_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> sleepers_{0};
  alignas(64) std::atomic<int> meeting_{0};        // arrived at the barrier inside a phase
  alignas(64) std::atomic<uint32_t> meetings_{0};  // such barriers so far
  alignas(64) std::atomic<uint32_t> calls_{0};     // counts up to call those who stand by
  alignas(64) std::atomic<int> first_by_;          // at most the least number of a thread that stands by; else size_
  std::atomic<int> dozers_{0};                     // of those who stand by, how many sleep
  std::atomic<uint32_t> returned_{0};              // the phase that the caller has last seen the end of a run in
  std::atomic<int64_t> taken_until_{0};            // nanoseconds(); 0: phases are divided
  std::atomic<int64_t> ended_{0};                  // when phases were last taken
  std::atomic<int64_t> patience_{0};               // for how long a late thread makes phases taken
  std::atomic<int64_t> rescues_{0};
  std::unique_ptr<Seat[]> seats_;
  Work work_ = nullptr;
  Next next_ = nullptr;
  void* argument_ = nullptr;
  std::atomic<bool> ending_{false};
  std::vector<std::thread> threads_;
};

}  // namespace octavo
