// The only file that includes nanobind. Addresses cross as integers; C++ keeps no Python object.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "oracle.h"
#include "tape.h"

namespace nb = nanobind;
using namespace octavo;

namespace {

using Words = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::vector<std::string> entry_names(const Variant& variant) {
  std::vector<std::string> names;
  for (i64 i = 0; i < variant.count; i++) names.emplace_back(variant.entries[i].name);
  return names;
}

std::vector<std::string> variant_names(bool runnable) {
  std::vector<std::string> names;
  for (const Variant* variant : built_variants())
    if (!runnable || processor_runs(variant->name)) names.emplace_back(variant->name);
  return names;
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // a Machine may live as long as the interpreter: LLM without close()
  m.doc() = "Octavo's native executor: memory regions, the thread team and the tape. See native/tape.h.";
  m.attr("ABI") = kAbi;
  m.attr("LAYOUT_HASH") = kLayoutHash;
  m.attr("HEAD_ROWS") = kHeadRows;
  m.def("variants", &variant_names, nb::arg("runnable") = true, "Names of the built variants, best first.");

  nb::class_<Machine>(m, "Machine")
      .def(nb::init<const std::string&, int, size_t>(), nb::arg("isa"), nb::arg("threads"), nb::arg("scratch_bytes"))
      .def_prop_ro("isa", [](const Machine& self) { return std::string(self.variant().name); })
      .def_prop_ro("threads", &Machine::threads)
      .def_prop_ro("entries", [](const Machine& self) { return entry_names(self.variant()); })
      .def("allocate", [](Machine& self, const std::string& kind, size_t bytes) { return self.memory.allocate(kind, bytes); },
           nb::arg("kind"), nb::arg("bytes"), "Index of a new zeroed region.")
      .def("map_file", [](Machine& self, int region, int descriptor, size_t bytes) {
             nb::gil_scoped_release release;
             self.memory.map_file(region, descriptor, bytes);
           }, nb::arg("region"), nb::arg("descriptor"), nb::arg("bytes"), "The region's pages become the file's, read-only.")
      .def("release", [](Machine& self, int region) { self.memory.release(region); })
      .def("address", [](const Machine& self, int region) { return reinterpret_cast<uintptr_t>(self.memory.region(region).address); })
      .def("memory", [](const Machine& self) { return self.memory.by_kind(); }, "Bytes asked for, by kind.")
      .def("bind_step", &Machine::bind_step, nb::arg("region"), nb::arg("offsets"), nb::arg("rows"), nb::arg("seqs"),
           nb::arg("results"), nb::arg("groups"), nb::arg("page_ops"))
      .def("bind_slots", &Machine::bind_slots, nb::arg("region"), nb::arg("offsets"), nb::arg("slots"), nb::arg("ids"),
           nb::arg("groups"), nb::arg("pages"), nb::arg("words"))
      .def("bind_arena", &Machine::bind_arena, nb::arg("region"))
      .def("bind_control", [](Machine& self, uintptr_t address) { self.bind_control(reinterpret_cast<uint8_t*>(address)); })
      .def("bind_masks", [](Machine& self, uintptr_t lines, int64_t slots, int64_t stride) {
             self.bind_masks(reinterpret_cast<const uint8_t*>(lines), slots, stride);
           }, nb::arg("lines"), nb::arg("slots"), nb::arg("stride"), "Masks of grammars are taken from there; 0: from nowhere.")
      .def("add_group", &Machine::add_group, nb::arg("region"), nb::arg("pages"), nb::arg("page_bytes"), nb::arg("first_byte"),
           nb::arg("layers"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("dtype"), nb::arg("window"))
      .def("load", [](Machine& self, Words image, const std::vector<std::string>& names) {
             return self.load(image.data(), image.size(), names);
           }, nb::arg("image"), nb::arg("names"), "Checks and loads a Program; its index.")
      .def("run", [](Machine& self, Words tape) {
             const int64_t* data = tape.data();
             const size_t size = tape.size();
             nb::gil_scoped_release release;
             return self.run(data, size);
           }, nb::arg("tape"), "Runs the tape with the GIL released; 1 when it was stopped and committed nothing.")
      .def("run_nodes", [](Machine& self, Words tape, int64_t rows) {
             const int64_t* data = tape.data();
             const size_t size = tape.size();
             nb::gil_scoped_release release;
             self.run_nodes(data, size, rows);
           }, nb::arg("tape"), nb::arg("rows") = 0, "Runs Programs outside a step, with all symbols = rows.")
      .def("suppose_late", [](Machine& self, int64_t nanoseconds) { self.team().suppose_late(nanoseconds); },
           nb::arg("nanoseconds"), "Threads take units for so long, as after one of them was late; changes no bit.")
      .def("rescues", [](Machine& self) { return self.team().rescues(); }, "Times that a thread without a core was given one.")
      .def("tune", &Machine::tune, nb::arg("name"), nb::arg("value"), "Sets a value of native/tuning.h; changes no bit.")
      .def("tuned", &Machine::tuned, nb::arg("name"))
      .def("profile", &Machine::profile, nb::arg("on"))
      .def("node_times", &Machine::node_times);

  // The scalar oracle of order: what every linear must equal bit for bit.
  m.def("oracle_linear", [](const std::string& layout, uintptr_t weights, int64_t k, int64_t panels, uintptr_t acts, int64_t rows,
                            uintptr_t out, int64_t ld, bool fused) {
    return oracle_linear(layout.c_str(), reinterpret_cast<const uint8_t*>(weights), k, panels,
                         reinterpret_cast<const uint8_t*>(acts), rows, reinterpret_cast<float*>(out), ld, fused);
  });
  m.def("oracle_quantize_row", [](uintptr_t x, int64_t k, int64_t span, uintptr_t row) {
    oracle_quantize_row(reinterpret_cast<const float*>(x), k, span, reinterpret_cast<uint8_t*>(row));
  });
}
