// Threads and cores as the system sees them: where a thread is, whether it runs, how to move it. Linux; elsewhere nothing
// is known and nothing moves. Knows nothing of teams.
#pragma once
#include <cstdint>

namespace octavo {

int64_t nanoseconds();      // of a clock that only goes forward
int cores_allowed();        // cores in the caller's affinity mask, at least 1
int this_core();            // -1: unknown
int core_of(int thread);    // where a thread of this process runs or queues; -1: unknown. Some 10 us
int another_core(int core); // the allowed core after this one, in a ring
int this_thread();          // the system's number of the calling thread
int64_t time_run(int thread);  // nanoseconds that a thread of this process has run so far; -1: unknown
// Moves a thread of this process to a core, once: its affinity mask is the same afterwards. A thread that waits in the
// queue of another core runs here as soon as this core is free. Moving oneself returns when the other core runs us.
void move_to_core(int thread, int core);

}  // namespace octavo
