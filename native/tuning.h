// What differs between machines and changes no bit: the values that kernels read (kernel.h, Tuning), and how many threads a
// node is worth. Every value is checked here; execution/autotune.py measures them. Knows no threads and no Program.
//
// One thread would take W = max(bytes / its bandwidth, operations / its rate) for a node, n threads take W / n + n * c, where c
// is what a phase costs for each thread that it is for (it arrives, and fetches the line that tells the next one): the least
// is at n = sqrt(W / c). One thread alone costs no c (team.h). All threads together may have less bandwidth than n times that
// of one; then fewer would do, but near its least the sum is flat.
#pragma once
#include <string>

#include "kernel.h"

namespace octavo {

struct Work {
  i64 symbol;                 // of rows; -1: unknown, all threads
  i64 bytes, row_bytes;       // bytes + row_bytes * rows
  i64 row_operations;         // those of int8 products; others count for as many as take the same time
  i64 key_operations, group;  // and for each key that a row sees in this group of the step
  i64 units, row_units;       // no more threads than units + row_units * rows
};
constexpr i64 kWorkWords = 8;

// Of one thread. The defaults are those of two threads of a Zen 5.
struct Costs {
  i64 phase_ns = 100;                        // c: 30 to 170 were seen; 0: every node is for all threads
  i64 bytes = 35'000, operations = 700'000;  // a microsecond
};

// Whether a Work that came in an image can be one; `groups`: state groups of the machine.
bool possible(const Work& work, size_t groups);
// From 1 to `size`.
int threads_worth(const Work& work, i64 rows, i64 keys, const Costs& costs, int size);
// Sets one value; throws std::invalid_argument for a name or a value that is none:
//   ahead_steps, share_rows            of Tuning
//   unpack.NAME, matrix.NAME           Format.unpack_rows and matrix_rows of the entry format.NAME
//   phase_ns, bytes_us, operations_us  of Costs
void tune(Tuning& tuning, Costs& costs, const Variant& variant, const std::string& name, i64 value);
// The value now; throws for a name that is none.
i64 tuned(Tuning& tuning, Costs& costs, const Variant& variant, const std::string& name);

}  // namespace octavo
