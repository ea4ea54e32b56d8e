// Ops that stand inside the arguments of a node (kernel.h): reading their list, running them on a tile. Knows no node.
#pragma once
#include "../variant.h"

OCTAVO_BEGIN
namespace {

inline i64 least(i64 a, i64 b) { return a < b ? a : b; }
inline i64 most(i64 a, i64 b) { return a > b ? a : b; }
inline i64 whole(i64 n, i64 unit) { return (n + unit - 1) / unit * unit; }

// A list of ops: count, then {function, n, args...}.
struct Ops {
  i64 count;
  const i64* first;
};
inline Ops take_ops(const i64*& at) {
  const Ops ops = {at[0], at + 1};
  at++;
  for (i64 i = 0; i < ops.count; i++) at += 2 + at[1];
  return ops;
}

// Calls body(function, its arguments) for each op.
template <class Fn>
inline void each_op(const Ops& ops, const Fn& body) {
  const i64* op = ops.first;
  for (i64 i = 0; i < ops.count; i++, op += 2 + op[1]) body(op[0], op + 2);
}

inline void run_ops(const Ops& ops, const Run& run, Tile& tile) {
  each_op(ops, [&](i64 function, const i64* args) { reinterpret_cast<TileFn>(function)(args, run, tile); });
}

}  // namespace
OCTAVO_END
