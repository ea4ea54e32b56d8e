#include "tuning.h"

#include <stdexcept>

#include "isa.h"

namespace octavo {

bool possible(const Work& work, size_t groups) {
  constexpr i64 kMost = i64{1} << 40;
  for (const i64 figure : {work.bytes, work.row_bytes, work.row_operations, work.key_operations, work.units, work.row_units})
    if (figure < 0 || figure > kMost) return false;
  if (work.key_operations > 0 && (work.group < 0 || static_cast<size_t>(work.group) >= groups)) return false;
  return work.symbol >= -1 && work.symbol < 4;
}

int threads_worth(const Work& work, i64 rows, i64 keys, const Costs& costs, int size) {
  if (costs.phase_ns == 0) return size;
  const double n = static_cast<double>(rows), c = static_cast<double>(costs.phase_ns) / 1000;
  const double bytes = static_cast<double>(work.bytes) + static_cast<double>(work.row_bytes) * n;
  const double operations = static_cast<double>(work.row_operations) * n +
                            static_cast<double>(work.key_operations) * static_cast<double>(keys);
  const double reading = bytes / static_cast<double>(costs.bytes);
  const double computing = operations / static_cast<double>(costs.operations);
  const double alone = reading > computing ? reading : computing;  // microseconds
  const i64 units = work.units + work.row_units * rows;
  const int most = units < size ? static_cast<int>(units) : size;
  if (most < 2 || alone <= 4 * c) return 1;  // two take alone / 2 + 2 c
  int threads = 2;
  while (threads < most && alone > c * threads * (threads + 1)) threads++;  // the next one takes off more than c
  return threads;
}

namespace {

struct Value {
  i64* at;
  i64 least, most;
};

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument("tuning: " + why); }

Value find(Tuning& tuning, Costs& costs, const Variant& variant, const std::string& name) {
  if (name == "ahead_steps") return {&tuning.ahead_steps, 1, 256};
  if (name == "share_rows") return {&tuning.share_rows, 0, 1 << 20};
  if (name == "phase_ns") return {&costs.phase_ns, 0, 1'000'000'000};
  if (name == "bytes_us") return {&costs.bytes, 1, 100'000'000};
  if (name == "operations_us") return {&costs.operations, 1, 1'000'000'000};
  const bool unpack = name.rfind("unpack.", 0) == 0;
  if (!unpack && name.rfind("matrix.", 0) != 0) refuse("there is no '" + name + "'");
  const auto* format = static_cast<const Format*>(find_entry(variant, "format." + name.substr(7)));
  if (format == nullptr || !format->quantized_acts) refuse("no packed format '" + name.substr(7) + "'");
  for (auto& each : tuning.formats) {
    if (each.format == nullptr) each = {format, format->unpack_rows, format->matrix_rows};
    if (each.format == format) return {unpack ? &each.unpack_rows : &each.matrix_rows, 0, 1 << 20};
  }
  refuse("more than " + std::to_string(kTunedFormats) + " formats");
}

}  // namespace

void tune(Tuning& tuning, Costs& costs, const Variant& variant, const std::string& name, i64 value) {
  const Value found = find(tuning, costs, variant, name);
  if (value < found.least || value > found.most)
    refuse(name + " is " + std::to_string(value) + ", not from " + std::to_string(found.least) + " to " + std::to_string(found.most));
  *found.at = value;
}

i64 tuned(Tuning& tuning, Costs& costs, const Variant& variant, const std::string& name) {
  return *find(tuning, costs, variant, name).at;
}

}  // namespace octavo
