#include "tape.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <cstring>
#include <stdexcept>

#include "cores.h"

namespace octavo {

namespace {

enum Instruction : i64 { kState = 0, kRun = 1, kChunks = 2, kLoop = 3, kAdvance = 4, kEnd = 5 };
enum LeftBecause : i64 { kRanAll = 0, kFinished = 1, kArrived = 2, kStopped = 3 };
constexpr int32_t kRejected = 3;  // out_status of a row behind a draft that was not sampled

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument("memory of a machine: " + why); }

// Rounding to nearest, exceptions masked, denormals kept: the same on every thread whatever the process did before.
void set_float_mode() {
#if defined(__x86_64__)
  _mm_setcsr(0x1f80);
#endif
}

}  // namespace

// A passage of the team through a tape: a cursor that stands on a node while threads work on it, and moves when the node is
// done, by whichever thread ended it. A thread that was away finds the cursor where the others are.
struct Pass {
  Machine& machine;
  const i64* tape;
  size_t words;
  i64 symbols[kSymbols] = {};
  i64 arrived_before = 0;  // of control.arrived; what came while the step was made delays by one run-ahead at most
  bool stopped = false;

  Pass(Machine& owner, const i64* instructions, size_t count, const i64* values)
      : machine(owner), tape(instructions), words(count), arrived_before(owner.control_->arrived) {
    for (int i = 0; i < kSymbols; i++) symbols[i] = values[i];
    pages_node.kernel = &change_pages;
    pages_node.args = {reinterpret_cast<i64>(&machine)};
    if (machine.profiling_) begun = nanoseconds();
  }

  // Threads that work take what they need from here: nothing of it changes while a phase lasts.
  static void work(void* self, int thread, int members, bool taking) {
    const Pass& pass = *static_cast<Pass*>(self);
    const Machine& m = pass.machine;
    set_float_mode();
    Run run{};
    run.thread = members > 1 ? thread : 0;
    run.threads = members;
    run.team = &pass.machine.team_;
    run.meet = members == 1 ? &meet_nobody : taking ? &meet_taking : &meet_divided;
    run.sections = const_cast<Section*>(pass.sections);
    run.taking = taking;
    run.scratch = m.memory.region(m.scratch_region_).address + static_cast<size_t>(thread) * m.scratch_bytes_;
    run.scratch_bytes = static_cast<i64>(m.scratch_bytes_);
    run.dims = pass.dims;
    run.step = &m.step_;
    run.slots = &m.slots_;
    run.groups = m.groups_.data();
    run.arena = m.arena_region_ < 0 ? nullptr : m.memory.region(m.arena_region_).address;
    run.iteration = pass.loop_index;
    run.tuning = &m.tuning_;
    const LoadedNode& node = *pass.node;
    node.kernel(node.args.data(), run);
    if (!taking && members > 1 && node.ahead_of_next != nullptr) node.ahead_of_next((&node + 1)->args.data(), run);
  }

  static int next(void* self) {
    Pass& pass = *static_cast<Pass*>(self);
    return pass.move() ? pass.worth() : 0;
  }

  int worth() const {
    const Work& work = node->work;
    if (work.symbol < 0) return machine.threads();
    const i64 keys = work.key_operations > 0 ? visible_keys(work.group) : 0;
    return threads_worth(work, symbols[work.symbol], keys, machine.costs_, machine.threads());
  }

  // Keys that all rows together see in a group, from sixteen of them at most.
  i64 visible_keys(i64 group) const {
    const Step& step = machine.step_;
    const i64 said = step.header == nullptr ? 0 : step.header[H_rows];
    const i64 rows = said < 0 ? 0 : said < step.T ? said : step.T, some = rows < 16 ? rows : 16;
    i64 keys = 0;
    for (i64 i = 0; i < some; i++) {
      const i64 at_row = group * step.T + i * rows / some;
      keys += step.row_hi[at_row] - step.row_lo[at_row];
    }
    return some == 0 ? 0 : keys * rows / some;
  }

  static void meet_nobody(const Run&, int, i64) {}
  static void meet_divided(const Run& run, int, i64) { static_cast<Team*>(run.team)->barrier(run.thread); }
  static void meet_taking(const Run& run, int section, i64 units) {
    static_cast<Team*>(run.team)->wait_done(run.thread, run.sections[section].done, units);
  }

  // To the next node; false at the end of the tape, or when the control page says stop.
  bool move() {
    Control& control = *machine.control_;
    control.progress = control.progress + 1;
    if (machine.profiling_ && program >= 0) {
      const i64 now = nanoseconds();
      machine.times_[static_cast<size_t>(program)][at_node] += now - begun;
      begun = now;
    }
    for (Section& section : sections) section = Section{};
    stopped = stopped || control.stop != 0;
    if (stopped) return false;
    if (program >= 0) {
      const auto& nodes = machine.programs_[static_cast<size_t>(program)]->nodes;
      if (++at_node < nodes.size()) {
        node = &nodes[at_node];
        return true;
      }
      program = -1;
    }
    while (at + 2 < words) {
      if (instruction(tape[at], tape[at + 1], tape[at + 2])) return true;
    }
    return false;
  }

  // Whether it has opened nodes to run; otherwise it is done, and `at` stands on what comes after it.
  bool instruction(i64 what, i64 a, i64 b) {
    switch (what) {
      case kState:
        at += 3;
        node = &pages_node;
        return machine.step_.header[H_zero_pages] + machine.step_.header[H_copy_pages] > 0;
      case kRun: at += 3; return open(a);
      case kChunks: return next_of_chunk(a, b);
      case kLoop: loop_start = at, at += 3; return false;
      case kAdvance: at += 3, advance(); return false;
      case kEnd: at = leave ? at + 3 : loop_start + 3; return false;
      default: at += 3; return false;
    }
  }

  bool open(i64 id) {
    const Program& opened = *machine.programs_[static_cast<size_t>(id)];
    if (opened.nodes.empty()) return false;
    for (size_t i = 0; i < opened.dims.size(); i++) dims[i] = opened.dims[i].value(symbols);
    program = id;
    at_node = 0;
    node = &opened.nodes[0];
    return true;
  }

  // Head and sample of one chunk of rows after the other.
  bool next_of_chunk(i64 head, i64 sample) {
    if (in_head) {
      in_head = false;
      machine.masks_.take(machine.step_, machine.slots_, chunk_first, symbols[kLogitRows]);
      chunk_first += kHeadRows;
      return open(sample);
    }
    const i64 total = machine.step_.header[H_logit_rows];
    if (chunk_first >= total) {
      chunk_first = 0;
      at += 3;
      return false;
    }
    machine.step_.header[H_logit_first] = chunk_first;
    symbols[kLogitRows] = total - chunk_first < kHeadRows ? total - chunk_first : kHeadRows;
    in_head = true;
    return open(head);
  }

  // The node of instruction `state`: pages of a pool are its units.
  static void change_pages(const i64* args, const Run& run) {
    const Machine& m = *reinterpret_cast<const Machine*>(args[0]);
    const i64 zeros = m.step_.header[H_zero_pages], copies = m.step_.header[H_copy_pages];
    const auto pools = static_cast<i64>(m.pools_.size());
    const auto page = [&](i64 pool, int32_t index) {
      return m.pools_[static_cast<size_t>(pool)] + index * m.pool_page_bytes_[static_cast<size_t>(pool)];
    };
    const auto bytes = [&](i64 pool) { return static_cast<size_t>(m.pool_page_bytes_[static_cast<size_t>(pool)]); };
    for (Share share; take(run, 0, zeros * pools, share);) {
      for (i64 i = share.begin; i < share.end; i++)
        std::memset(page(i / zeros, m.step_.zero_page[i % zeros]), 0, bytes(i / zeros));
    }
    run.meet(run, 0, zeros * pools);
    for (Share share; take(run, 1, copies * pools, share);) {
      for (i64 i = share.begin; i < share.end; i++) {
        const int32_t* pair = m.step_.copy_page + 2 * (i % copies);
        std::memcpy(page(i / copies, pair[1]), page(i / copies, pair[0]), bytes(i / copies));
      }
    }
  }

  // Commits the sampled ids to the slots, then decides whether another decode step follows.
  // The sampled rows of a sequence stand in order. Behind the first of them each was computed as if the ids drafted before
  // it, which lie in slot.ids from `known` on, were right; the first row that samples another id, or the sequence's end,
  // ends the chain.
  void advance() {
    Step& step = machine.step_;
    const Slots& slots = machine.slots_;
    i64* header = step.header;
    bool finished = false;
    i64 over = -1;  // the sequence of the step whose chain has ended
    for (i64 row = 0; row < header[H_logit_rows]; row++) {
      if (step.logit_target[row] >= 0) continue;
      const i64 result = header[H_result_first] + row, sequence = step.logit_seq[row];
      int32_t& status = step.out_status[result];
      if (sequence == over) {
        if (status == 0) status = kRejected;
        continue;
      }
      if (status != 0) {
        finished = true;
        over = sequence;
        continue;
      }
      const i64 slot = step.seq_slot[sequence];
      const int32_t token = step.out_token[result], known = slots.known[slot];
      bool as_drafted = false;
      if (known < slots.L) {
        int32_t& id = slots.ids[slot * slots.L + known];
        as_drafted = id == token;
        id = token;
      }
      slots.known[slot] = known + 1;
      slots.mu[slot] = step.out_mu[result];
      const bool ends = known + 1 >= slots.length_limit[slot] || is_stop(slot, token);
      finished = finished || ends;
      if (ends || !as_drafted) over = sequence;
    }
    loop_index++;
    header[H_loops_done] = loop_index;
    const bool arrived = machine.control_->arrived != arrived_before;
    leave = finished || arrived || loop_index >= header[H_loop];
    header[H_left_because] = finished ? kFinished : arrived && loop_index < header[H_loop] ? kArrived : kRanAll;
    if (!leave) next_decode_rows();
  }

  bool is_stop(i64 slot, int32_t token) const {
    const Slots& slots = machine.slots_;
    for (int32_t i = 0; i < slots.stop_ids[slot]; i++)
      if (slots.stop_id[slot * kMaxStopIds + i] == token) return true;
    return false;
  }

  void next_decode_rows() {
    Step& step = machine.step_;
    i64* header = step.header;
    header[H_result_first] += header[H_logit_rows];
    for (i64 row = 0; row < header[H_rows]; row++) {
      step.row_pos[row] += 1;
      for (size_t g = 0; g < machine.groups_.size(); g++) {
        int32_t& high = step.row_hi[static_cast<i64>(g) * step.T + row];
        high += 1;
        const int32_t window = machine.groups_[g].window;
        if (window > 0) step.row_lo[static_cast<i64>(g) * step.T + row] = high > window ? high - window : 0;
      }
    }
  }

  const LoadedNode* node = nullptr;
  LoadedNode pages_node{};
  i64 dims[kMaxDims] = {};
  Section sections[kSections] = {};
  size_t at = 0, at_node = 0, loop_start = 0;
  i64 program = -1, chunk_first = 0, loop_index = 0, begun = 0;
  bool in_head = false, leave = false;
};

Machine::Machine(const std::string& isa, int threads, size_t scratch_bytes)
    : variant_(choose_variant(isa)), team_(threads), scratch_bytes_((scratch_bytes + 4095) / 4096 * 4096) {
  if (variant_->name == std::string(kMatrixVariant)) tuning_.matrix = true;
  scratch_region_ = memory.allocate("scratch", scratch_bytes_ * static_cast<size_t>(team_.size()));
}

void Machine::bind_step(int region, const std::vector<i64>& offsets, i64 rows, i64 seqs, i64 results, i64 groups,
                        i64 page_ops) {
  if (offsets.size() != static_cast<size_t>(Step::kFields)) refuse("step layout has another number of fields");
  step_.bind(memory.region(region).address, offsets.data());
  step_.T = rows, step_.S = seqs, step_.S1 = seqs + 1, step_.R = results, step_.G = groups, step_.Z = page_ops;
}

void Machine::bind_slots(int region, const std::vector<i64>& offsets, i64 slots, i64 ids, i64 groups, i64 pages, i64 words) {
  if (offsets.size() != static_cast<size_t>(Slots::kFields)) refuse("slot layout has another number of fields");
  slots_.bind(memory.region(region).address, offsets.data());
  slots_.N = slots, slots_.L = ids, slots_.G = groups, slots_.P = pages, slots_.V32 = words;
}

void Machine::bind_arena(int region) {
  memory.region(region);
  arena_region_ = region;
}

void Machine::bind_masks(const uint8_t* lines, i64 slots, i64 stride) {
  if (lines != nullptr && (slots < slots_.N || stride < slots_.V32 * 4)) refuse("the table of masks is too small");
  masks_ = Masks(lines, slots, stride);
}

void Machine::add_group(int region, i64 pages, i64 page_bytes, i64 first_byte, i64 layers, i64 kv_heads, i64 head_dim,
                        i64 dtype, i64 window) {
  const Region& pool = memory.region(region);
  const i64 head_bytes = kv_head_bytes(head_dim, dtype);
  const i64 layer_bytes = kv_heads * head_bytes;
  if (first_byte + layers * layer_bytes > page_bytes || static_cast<size_t>(pages * page_bytes) > pool.bytes)
    refuse("a paged group does not fit its pool");
  groups_.push_back({pool.address + first_byte, pages, page_bytes, layer_bytes, head_bytes, static_cast<int32_t>(layers),
                     static_cast<int32_t>(kv_heads), static_cast<int32_t>(head_dim), static_cast<int32_t>(dtype),
                     static_cast<int32_t>(window), static_cast<int32_t>(groups_.size())});
  for (uint8_t* known : pools_)
    if (known == pool.address) return;
  pools_.push_back(pool.address);
  pool_page_bytes_.push_back(page_bytes);
  pool_pages_.push_back(pages);
}

int Machine::run(const i64* tape, size_t words) {
  if (step_.header == nullptr) throw std::invalid_argument("no step is bound");
  i64* header = step_.header;
  if (header[H_rows] > step_.T || header[H_seqs] > step_.S || header[H_logit_rows] > step_.R ||
      header[H_logit_rows] * header[H_loop] > step_.R || header[H_zero_pages] > step_.Z || header[H_copy_pages] > step_.Z)
    throw std::invalid_argument("the step exceeds its bounds");
  header[H_loops_done] = header[H_left_because] = header[H_nonfinite] = 0;
  header[H_logit_first] = header[H_result_first] = 0;
  const i64 symbols[kSymbols] = {header[H_rows], header[H_seqs], header[H_logit_rows], 1};
  const bool stopped = walk(tape, words, symbols);
  if (stopped) header[H_left_because] = kStopped;
  return stopped ? 1 : 0;
}

void Machine::run_nodes(const i64* tape, size_t words, i64 rows) {
  const i64 symbols[kSymbols] = {rows, rows, rows, 1};
  walk(tape, words, symbols);
}

bool Machine::walk(const i64* tape, size_t words, const i64* symbols) {
  if (words % 3 != 0) throw std::invalid_argument("the tape is cut off");
  for (size_t at = 0; at < words; at += 3) {
    const bool known = tape[at] >= kState && tape[at] <= kEnd;
    const bool names_program = tape[at] == kRun || tape[at] == kChunks;
    const i64 last = tape[at] == kChunks ? tape[at + 2] : 0;
    if (!known || (names_program && (tape[at + 1] < 0 || tape[at + 1] >= programs() || last < 0 || last >= programs())))
      throw std::invalid_argument("unknown instruction or program at word " + std::to_string(at) + " of the tape");
  }
  Pass pass(*this, tape, words, symbols);
  if (pass.move()) team_.run(&Pass::work, &Pass::next, &pass, pass.worth());
  return pass.stopped;
}

void Machine::profile(bool on) {
  profiling_ = on;
  for (auto& times : times_) times.assign(times.size(), 0);
}

std::vector<i64> Machine::node_times() const {
  std::vector<i64> all;
  for (const auto& times : times_) all.insert(all.end(), times.begin(), times.end());
  return all;
}

}  // namespace octavo
