// The thread team: persistent threads that run one function together and meet at barriers.
//
// Waiting is spin, then yield, then futex: a pure spin collapses when cores are taken by others, a pure sleep costs tens
// of microseconds at each of the hundreds of barriers of a step.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace octavo {

class Team {
 public:
  using Work = void (*)(void* argument, int thread);

  explicit Team(int threads);  // threads >= 1; the caller of run() is thread 0
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  ~Team();

  int size() const { return size_; }
  // Calls work(argument, thread) once on every thread and returns when all are done. Not reentrant.
  void run(Work work, void* argument);
  // Every thread of the running work must call it equally often.
  void barrier();

 private:
  // A word that threads wait for to change.
  struct Gate {
    alignas(64) std::atomic<uint32_t> generation{0};
    alignas(64) std::atomic<uint32_t> sleepers{0};
    void open();
    void wait(uint32_t seen, int spins);
  };

  void follow(int thread);

  const int size_;
  alignas(64) std::atomic<int> arrived_{0};
  Gate inner_;  // barriers inside a run
  Gate start_;  // a run begins, or the team ends
  Work work_ = nullptr;
  void* argument_ = nullptr;
  std::atomic<bool> ending_{false};
  std::vector<std::thread> threads_;
};

}  // namespace octavo
