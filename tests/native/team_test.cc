// The team alone: every unit of every phase is done once, whatever becomes of the threads. Phases are divided or taken, cores
// are fewer than threads, other processes' threads hold them, runs follow each other at once or after a sleep, phases are for
// some of the threads or for one. And the number of threads that a node is worth.
#include "team.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tuning.h"

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
  std::mt19937 random{7};
  int members = 0;  // threads that the phase is for

  Job(Team& t, i64 n, int count) : team(t), units(n), phases(count), first(static_cast<size_t>(n)), second(first) {}

  int choose() { return members = 1 + static_cast<int>(random() % static_cast<unsigned>(team.size())); }

  static void work(void* self, int thread, int members, bool taking) {
    Job& job = *static_cast<Job*>(self);
    if (!taking && (members > job.members || (members > 1 && thread >= members))) job.good = false;
    Run run{};
    run.thread = members > 1 ? thread : 0;
    run.threads = members;
    run.team = &job;
    run.sections = job.sections;
    run.taking = taking;
    const auto u = [](i64 i) { return static_cast<size_t>(i); };
    for (Share share; take(run, 0, job.units, share);)
      for (i64 i = share.begin; i < share.end; i++) job.first[u(i)] += i + job.at;
    if (taking)
      job.team.wait_done(thread, job.sections[0].done, job.units);
    else if (members > 1)
      job.team.barrier(thread);
    for (Share one; take_one(run, 1, job.units, one);) job.second[u(one.begin)] += job.first[u(job.units - 1 - one.begin)];
  }

  static int next(void* self) {
    Job& job = *static_cast<Job*>(self);
    for (i64 i = 0; i < job.units; i++) {
      const auto u = static_cast<size_t>(i);
      job.good = job.good && job.first[u] == i + job.at && job.second[u] == job.units - 1 - i + job.at;
      job.first[u] = job.second[u] = 0;
    }
    job.sections[0] = job.sections[1] = Section{};
    return ++job.at < job.phases ? job.choose() : 0;
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
      team.run(&Job::work, &Job::next, &job, job.choose());
      expect(job.good && job.at == job.phases, std::to_string(threads) + " threads, " + std::to_string(hogs) + " hogs");
      if (round % 5 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));
    }
  }
  ending = true;
  for (auto& other : others) other.join();
}

void test_worth() {
  const Costs costs = {200, 25'000, 500'000};  // 0.2 us a thread and phase, 25 bytes and 500 operations a ns
  const i64 many = 1 << 20;
  const auto worth = [&](i64 bytes, i64 row_operations, i64 units, i64 rows, int size) {
    return threads_worth({0, bytes, 0, row_operations, 0, 0, units, 0}, rows, 0, costs, size);
  };
  expect(worth(0, 0, many, 1, 64) == 1, "nothing to do is for one thread");
  expect(worth(15'000, 0, many, 1, 64) == 1, "0.6 us is for one thread");
  expect(worth(75'000, 0, many, 1, 64) == 4, "3 us: sqrt(3 / 0.2)");
  expect(worth(7'500'000, 0, many, 1, 64) == 39, "300 us: sqrt(300 / 0.2)");
  expect(worth(7'500'000, 0, 7, 1, 64) == 7, "no more threads than units");
  expect(worth(7'500'000, 0, many, 1, 2) == 2, "no more threads than there are");
  expect(worth(0, 1'500'000, many, 100, 64) == 39, "operations count by rows");
  expect(threads_worth({0, 0, 0, 0, 0, 0, many, 0}, 1, 0, {0, 1, 1}, 8) == 8, "no cost: all threads");
  for (int size = 1; size < 70; size++) {
    for (i64 bytes = 0; bytes < 100'000'000; bytes = 3 * bytes + 1000) {
      const auto time = [&](int n) { return static_cast<double>(bytes) / 25'000 / n + (n > 1 ? 0.2 * n : 0.0); };
      const int n = worth(bytes, 0, many, 1, size);
      for (int other = 1; other <= size; other++) expect(time(n) <= time(other) + 0.21, "the least time, or nearly");
    }
  }
  Work work = {};
  expect(possible(work, 0), "no work is possible");
  work.bytes = -1;
  expect(!possible(work, 0), "negative bytes are not");
  work = {0, 0, 0, 0, 1, 1, 0, 0};
  expect(!possible(work, 1) && possible(work, 2), "keys of a group that is there");
  work = {4, 0, 0, 0, 0, 0, 0, 0};
  expect(!possible(work, 1), "symbol 4 is none");
}

}  // namespace

int main() {
  test_worth();
  for (int threads : {1, 2, 3, 4, 7})
    for (bool late : {false, true})
      for (int hogs : {0, 2}) test_runs(threads, late, hogs);
  std::printf("team: all units once\n");
}
