// Machine::load: the words of a Program's image (tape.h) to nodes with addresses, each word checked. Knows no tape and no team.
#include <stdexcept>

#include "tape.h"

namespace octavo {

namespace {

constexpr i64 kHeaderWords = 4, kNodeWords = 4 + kWorkWords, kArgWords = 5;

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument("program image: " + why); }

// Equal dimensions share an index, so that each thread evaluates only a handful.
i64 dimension_index(std::vector<Dim>& dims, const Dim& wanted) {
  for (size_t i = 0; i < dims.size(); i++)
    if (dims[i].factor == wanted.factor && dims[i].symbol == wanted.symbol && dims[i].add == wanted.add &&
        dims[i].divide == wanted.divide)
      return static_cast<i64>(i);
  dims.push_back(wanted);
  return static_cast<i64>(dims.size()) - 1;
}

}  // namespace

int Machine::load(const i64* image, size_t words, const std::vector<std::string>& names) {
  if (words < kHeaderWords || image[0] != kMagic || image[1] != kAbi || image[2] != kLayoutHash)
    refuse("made for another version of the native library; rebuild with `python3 dev build`");
  auto program = std::make_unique<Program>();
  size_t at = kHeaderWords;
  auto entry = [&](i64 index) {
    if (index < 0 || static_cast<size_t>(index) >= names.size()) refuse("name index out of range");
    const void* address = find_entry(*variant_, names[static_cast<size_t>(index)]);
    if (address == nullptr) refuse("variant " + std::string(variant_->name) + " has no '" + names[static_cast<size_t>(index)] + "'");
    return address;
  };
  for (i64 n = 0; n < image[3]; n++) {
    if (at + kNodeWords > words) refuse("ends inside a node");
    LoadedNode node{reinterpret_cast<Kernel>(const_cast<void*>(entry(image[at]))), names[static_cast<size_t>(image[at])],
                    image[at + 1], {}, {}};
    if (image[at + 2] != -1) refuse("wait nodes are not supported by this version");
    const i64* words_of_work = image + at + 3;
    const i64 count = image[at + 3 + kWorkWords];
    node.work = {words_of_work[0], words_of_work[1], words_of_work[2], words_of_work[3],
                 words_of_work[4], words_of_work[5], words_of_work[6], words_of_work[7]};
    if (!possible(node.work, groups_.size())) refuse("'" + node.name + "' says nothing possible about its work");
    at += kNodeWords;
    if (count < 0 || static_cast<size_t>(count) > (words - at) / kArgWords) refuse("ends inside the arguments of '" + node.name + "'");
    for (i64 i = 0; i < count; i++, at += kArgWords) {
      const i64 a = image[at + 1], b = image[at + 2], c = image[at + 3], d = image[at + 4];
      switch (image[at]) {
        case 0: node.args.push_back(a); break;
        case 1: {
          const Region& region = memory.region(static_cast<int>(a));
          if (b < 0 || c < 0 || static_cast<size_t>(b) > region.bytes || static_cast<size_t>(c) > region.bytes - static_cast<size_t>(b))
            refuse("'" + node.name + "' argument " + std::to_string(i) + " lies outside region '" + region.kind + "'");
          node.args.push_back(reinterpret_cast<i64>(region.address + b));
          break;
        }
        case 2:
          if (b < 0 || b >= kSymbols || d < 1) refuse("bad dimension in '" + node.name + "'");
          node.args.push_back(dimension_index(program->dims, {a, b, c, d}));
          break;
        case 3: node.args.push_back(reinterpret_cast<i64>(entry(a))); break;
        default: refuse("unknown kind of argument in '" + node.name + "'");
      }
    }
    const void* ahead = find_entry(*variant_, node.name + ".ahead");
    if (n > 0) program->nodes.back().ahead_of_next = reinterpret_cast<Kernel>(const_cast<void*>(ahead));
    program->nodes.push_back(std::move(node));
  }
  if (program->dims.size() > kMaxDims) refuse("more than " + std::to_string(kMaxDims) + " different dimensions");
  times_.emplace_back(program->nodes.size(), 0);
  programs_.push_back(std::move(program));
  return static_cast<int>(programs_.size()) - 1;
}

}  // namespace octavo
