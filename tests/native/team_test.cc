// The team alone: every unit of every phase is done once, whatever becomes of the threads. Phases are divided or taken, cores
// are fewer than threads, other processes' threads hold them, runs follow each other at once or after a sleep.
#include "team.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernel.h"

using namespace octavo;

namespace {

void expect(bool good, const std::string& what) {
  if (good) return;
  std::printf("FAILED: %s\n", what.c_str());
  std::exit(1);
}

// Phases of two sections; the second one sums what the first one wrote.
struct Job {
  Team& team;
  i64 units;
  int phases, at = 0;
  std::vector<i64> first, second;
  Section sections[2] = {};
  bool good = true;

  Job(Team& t, i64 n, int count) : team(t), units(n), phases(count), first(static_cast<size_t>(n)), second(first) {}

  static void work(void* self, int thread, bool taking) {
    Job& job = *static_cast<Job*>(self);
    Run run{};
    run.thread = thread;
    run.threads = job.team.size();
    run.team = &job;
    run.sections = job.sections;
    run.taking = taking;
    const auto u = [](i64 i) { return static_cast<size_t>(i); };
    for (Share share; take(run, 0, job.units, share);)
      for (i64 i = share.begin; i < share.end; i++) job.first[u(i)] += i + job.at;
    if (taking)
      job.team.wait_done(thread, job.sections[0].done, job.units);
    else
      job.team.barrier(thread);
    for (Share one; take_one(run, 1, job.units, one);) job.second[u(one.begin)] += job.first[u(job.units - 1 - one.begin)];
  }

  static bool next(void* self) {
    Job& job = *static_cast<Job*>(self);
    for (i64 i = 0; i < job.units; i++) {
      const auto u = static_cast<size_t>(i);
      job.good = job.good && job.first[u] == i + job.at && job.second[u] == job.units - 1 - i + job.at;
      job.first[u] = job.second[u] = 0;
    }
    job.sections[0] = job.sections[1] = Section{};
    return ++job.at < job.phases;
  }
};

void test_runs(int threads, bool late, int hogs) {
  std::atomic<bool> ending{false};
  std::vector<std::thread> others;
  for (int i = 0; i < hogs; i++)
    others.emplace_back([&] {
      while (!ending.load(std::memory_order_relaxed)) {
      }
    });
  {
    Team team(threads);
    std::mt19937 random(static_cast<unsigned>(threads));
    for (int round = 0; round < 40; round++) {
      if (late && round % 8 == 0) team.suppose_late(round % 16 ? 20'000'000 : 1'000'000);
      Job job(team, static_cast<i64>(random() % 40), 1 + static_cast<int>(random() % 60));
      team.run(&Job::work, &Job::next, &job);
      expect(job.good && job.at == job.phases, std::to_string(threads) + " threads, " + std::to_string(hogs) + " hogs");
      if (round % 5 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));
    }
  }
  ending = true;
  for (auto& other : others) other.join();
}

}  // namespace

int main() {
  for (int threads : {1, 2, 3, 4, 7})
    for (bool late : {false, true})
      for (int hogs : {0, 2}) test_runs(threads, late, hogs);
  std::printf("team: all units once\n");
}
