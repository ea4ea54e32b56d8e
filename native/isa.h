// Which variants exist in this build, which this processor can run, and the choice between them.
#pragma once
#include <string>
#include <vector>

#include "kernel.h"

namespace octavo {

constexpr const char* kMatrixVariant = "amx";  // avx512bf16 with products on the matrix unit: equal bits but for attention over bf16 pages

std::vector<const Variant*> built_variants();  // best first
bool processor_runs(const std::string& variant);
// `wanted`: a variant's name, or "" for the best. Throws std::invalid_argument with the list of what would work.
const Variant* choose_variant(const std::string& wanted);
const void* find_entry(const Variant& variant, const std::string& name);  // nullptr when missing

}  // namespace octavo
