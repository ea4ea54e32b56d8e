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
// All threads take part in every divided phase, also where there are fewer units than threads: such threads only arrive. With
// many cores a phase of few units should wait for as many threads as it has units. That needs the number of units before
// the kernel runs, and was neither built nor measured: two cores would not tell.
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
  using Work = void (*)(void* argument, int thread, bool taking);  // a thread's part of a phase
  using Next = bool (*)(void* argument);  // between two phases, on one thread: whether another one follows

  explicit Team(int threads);  // threads >= 1; the caller of run() is thread 0
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  ~Team();

  int size() const { return size_; }
  // Phases until next() says that there is none: at least one. Not reentrant.
  void run(Work work, Next next, void* argument);
  // Inside a phase that is divided: every thread must call it equally often.
  void barrier(int thread);
  // Inside a phase that is taken: waits until `done` has reached `units`.
  void wait_done(int thread, const int64_t& done, int64_t units);
  // Times that a waiting thread gave its core away: for tests and for whoever wonders about a slow machine.
  int64_t rescues() const { return rescues_.load(std::memory_order_relaxed); }
  // Phases are taken for the next `nanoseconds`, as after a late thread: for tests.
  void suppose_late(int64_t nanoseconds);

 private:
  // The phase in the upper half, flags and the number of threads inside (only of a taken phase) in the lower.
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
  void open(State state);
  void sleep_until_divided();
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
  std::atomic<uint32_t> divided_{0};               // counts up to wake parked threads
  std::atomic<int> parked_{0};                     // more threads than cores: these sleep while phases are taken
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
