// The node "sample" of every variant in buffers of their exact sizes (the build has ASan and UBSan): random parameters, odd
// vocabularies, hostile slots; equal bits on 1 and 3 threads; greedy ids and ranks against a plain scan. What each parameter
// means is tested in tests/ops/test_sample.py.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "isa.h"

namespace {
using namespace octavo;

int failures = 0;
std::mt19937 rng(7);

void expect(bool good, const std::string& what) {
  if (good) return;
  if (++failures <= 20) std::printf("FAILED: %s\n", what.c_str());
}
int whole(int lo, int hi) { return std::uniform_int_distribution<int>(lo, hi)(rng); }
float real(float lo, float hi) { return std::uniform_real_distribution<float>(lo, hi)(rng); }

i64 workspace_bytes(i64 V) {
  const i64 P = (V + 255) / 256 * 256;
  return 16 * P + P / 2 + (P / 64 + 63) / 64 * 64;
}

// Every array on the heap, as large as the kernel may read.
struct World {
  i64 V, rows, L = 24;
  std::vector<float> logits, temperature, top_p, min_p, repetition, presence, frequency, bias_value, out_logprob, out_top_logprob;
  std::vector<float> typical_p, top_n_sigma, xtc_probability, xtc_threshold, range, exponent, tau, eta, mu, multiplier, base;
  std::vector<float> out_mu;
  std::vector<int32_t> chain, repeat_last_n, allowed_length, dry_last_n;
  std::vector<int32_t> ids, prompt_len, min_known, choice, stop_id, stop_ids, top_k, logprobs, bias_id, biases, bad_word, masked;
  std::vector<int32_t> seq_slot, row_pos, logit_row, logit_seq, logit_target, out_token, out_rank, out_status, out_top_id;
  std::vector<uint32_t> mask, breaker;
  std::vector<uint64_t> seed;
  std::vector<i64> header = std::vector<i64>(64);
  Step step{};
  Slots slots{};

  template <class T>
  T* make(std::vector<T>& field, i64 count) {
    field.resize(static_cast<size_t>(count));
    return field.data();
  }

  World(i64 V, i64 rows) : V(V), rows(rows) {
    slots = {};
    slots.L = L, slots.N = rows, slots.V32 = (V + 31) / 32;
    slots.ids = make(ids, rows * L), slots.prompt_len = make(prompt_len, rows), slots.min_known = make(min_known, rows);
    slots.seed = make(seed, rows), slots.choice = make(choice, rows), slots.stop_ids = make(stop_ids, rows);
    slots.stop_id = make(stop_id, rows * kMaxStopIds), slots.temperature = make(temperature, rows);
    slots.top_k = make(top_k, rows), slots.top_p = make(top_p, rows), slots.min_p = make(min_p, rows);
    slots.repetition_penalty = make(repetition, rows), slots.presence_penalty = make(presence, rows);
    slots.frequency_penalty = make(frequency, rows), slots.logprobs = make(logprobs, rows);
    slots.bias_id = make(bias_id, rows * kMaxLogitBias), slots.bias_value = make(bias_value, rows * kMaxLogitBias);
    slots.biases = make(biases, rows), slots.bad_word = make(bad_word, rows * kMaxBadWordIds);
    slots.mask = make(mask, rows * slots.V32), slots.masked = make(masked, rows);
    slots.chain = make(chain, rows * kSamplerSteps), slots.repeat_last_n = make(repeat_last_n, rows);
    slots.typical_p = make(typical_p, rows), slots.top_n_sigma = make(top_n_sigma, rows);
    slots.xtc_probability = make(xtc_probability, rows), slots.xtc_threshold = make(xtc_threshold, rows);
    slots.dynatemp_range = make(range, rows), slots.dynatemp_exponent = make(exponent, rows);
    slots.mirostat_tau = make(tau, rows), slots.mirostat_eta = make(eta, rows), slots.mu = make(mu, rows);
    slots.dry_multiplier = make(multiplier, rows), slots.dry_base = make(base, rows);
    slots.dry_allowed_length = make(allowed_length, rows), slots.dry_penalty_last_n = make(dry_last_n, rows);
    slots.breaker = make(breaker, rows * slots.V32), step.out_mu = make(out_mu, rows);
    step.header = header.data(), step.seq_slot = make(seq_slot, rows), step.row_pos = make(row_pos, rows);
    step.logit_row = make(logit_row, rows), step.logit_seq = make(logit_seq, rows);
    step.logit_target = make(logit_target, rows), step.out_token = make(out_token, rows);
    step.out_logprob = make(out_logprob, rows), step.out_rank = make(out_rank, rows);
    step.out_status = make(out_status, rows), step.out_top_id = make(out_top_id, rows * kMaxTopLogprobs);
    step.out_top_logprob = make(out_top_logprob, rows * kMaxTopLogprobs);
    make(logits, rows * V);
    for (i64 r = 0; r < rows; r++) fill(r);
  }

  void fill(i64 r) {
    const auto token = [&] { return whole(0, 30) ? whole(0, static_cast<int>(V) - 1) : whole(-5, 1 << 30); };  // some are none
    const int shape = whole(0, 3);  // ties, flat, steep
    const float most = shape == 1 ? 0.5f : 9.0f;
    for (i64 i = r * V; i < (r + 1) * V; i++) logits[i] = shape == 0 ? static_cast<float>(whole(0, 3)) : real(-most, most);
    if (whole(0, 9) == 0) logits[r * V + whole(0, static_cast<int>(V) - 1)] = whole(0, 1) ? NAN : INFINITY;
    seq_slot[r] = logit_seq[r] = logit_row[r] = static_cast<int32_t>(r);
    row_pos[r] = whole(0, static_cast<int>(L) - 1), prompt_len[r] = whole(1, row_pos[r] + 1);
    logit_target[r] = whole(0, 5) ? -1 : token();
    for (i64 i = 0; i < L; i++) ids[r * L + i] = token();
    min_known[r] = whole(0, 30), seed[r] = rng(), choice[r] = whole(0, 3), stop_ids[r] = whole(0, kMaxStopIds);
    for (int i = 0; i < kMaxStopIds; i++) stop_id[r * kMaxStopIds + i] = token();
    temperature[r] = whole(0, 3) ? real(0.01f, 3) : 0;
    top_k[r] = whole(0, 1) ? whole(0, static_cast<int>(V) + 2) : 0, top_p[r] = whole(0, 1) ? real(1e-6f, 1) : 1;
    min_p[r] = whole(0, 1) ? real(0, 1) : 0, repetition[r] = whole(0, 1) ? real(0.01f, 3) : 1;
    presence[r] = whole(0, 1) ? real(-2, 2) : 0, frequency[r] = whole(0, 1) ? real(-2, 2) : 0;
    logprobs[r] = whole(-1, 20), biases[r] = whole(0, 2) ? 0 : whole(0, kMaxLogitBias), masked[r] = whole(0, 3) == 0;
    for (i64 i = r * kMaxLogitBias; i < (r + 1) * kMaxLogitBias; i++) bias_id[i] = token(), bias_value[i] = real(-100, 100);
    for (i64 i = 0, at = r * kMaxBadWordIds; i < kMaxBadWordIds; i++)  // lengths run over the end, too
      bad_word[at + i] = whole(0, 1) ? whole(0, 60) : token();
    for (i64 i = r * slots.V32; i < (r + 1) * slots.V32; i++)
      mask[i] = static_cast<uint32_t>(rng()), breaker[i] = static_cast<uint32_t>(rng() & rng() & rng());
    chained(r);
  }

  // Half of the slots have chains: any codes in any order, some of which are none, to the very end of the column.
  void chained(i64 r) {
    const int links = whole(0, 1) * whole(1, kSamplerSteps);
    for (int k = 0; k < kSamplerSteps; k++) chain[r * kSamplerSteps + k] = k < links ? whole(1, 13) : 0;
    for (i64 i = whole(0, 2) ? r * L : (r + 1) * L; i < (r + 1) * L; i++) ids[i] = ids[r * L + i % 3];  // repetitions
    repeat_last_n[r] = whole(-1, 30), typical_p[r] = real(1e-6f, 1), top_n_sigma[r] = real(0.01f, 5);
    xtc_probability[r] = real(0, 2), xtc_threshold[r] = real(0, 0.6f), range[r] = whole(0, 1) ? real(0, 3) : 0;
    exponent[r] = real(0, 3), tau[r] = real(0, 12), eta[r] = real(0, 1), mu[r] = real(-9, 90);
    multiplier[r] = real(0, 3), base[r] = real(1, 100), allowed_length[r] = whole(1, 4), dry_last_n[r] = whole(-1, 30);
  }

  // All results as bytes.
  std::string run(Kernel sample, int threads) {
    std::vector<uint8_t> workspace(static_cast<size_t>(threads * workspace_bytes(V)) + 64, 0xA5);
    uint8_t* aligned = workspace.data() + (64 - reinterpret_cast<uintptr_t>(workspace.data()) % 64) % 64;
    header[H_nonfinite] = 0;
    Section sections[2] = {};
    const i64 dims[1] = {rows};
    const i64 args[6] = {reinterpret_cast<i64>(logits.data()), V, V, reinterpret_cast<i64>(aligned),
                         threads * workspace_bytes(V), 0};
    std::vector<std::thread> team;
    for (int t = 0; t < threads; t++)
      team.emplace_back([&, t] {
        Run run{};
        run.thread = t, run.threads = threads, run.dims = dims, run.step = &step, run.slots = &slots, run.sections = sections;
        sample(args, run);
      });
    for (auto& each : team) each.join();
    std::string all;
    const auto put = [&](const auto& field) {
      all.append(reinterpret_cast<const char*>(field.data()), field.size() * sizeof(field[0]));
    };
    put(out_token), put(out_logprob), put(out_rank), put(out_status), put(out_top_id), put(out_top_logprob), put(out_mu), put(header);
    return all;
  }
};

void check_ranks(const World& w, const std::string& name) {
  for (i64 r = 0; r < w.rows; r++) {
    const float* x = &w.logits[static_cast<size_t>(r * w.V)];
    bool finite = true;
    for (i64 i = 0; i < w.V; i++) finite = finite && std::isfinite(x[i]);
    expect((w.out_status[r] == 1) == !finite, name + " status");
    if (w.out_status[r] != 0) {
      expect(w.out_token[r] == -1, name + " refused token");
      continue;
    }
    const int32_t token = w.out_token[r];
    if (token < 0 || token >= w.V) return expect(false, name + " token outside the vocabulary");
    if (w.out_rank[r] == 0) continue;
    int32_t before = 1;
    for (i64 i = 0; i < w.V; i++) before += x[i] > x[token] || (x[i] == x[token] && i < token);
    expect(w.out_rank[r] == before, name + " rank");
    expect(w.out_logprob[r] <= 1e-6f && std::isfinite(w.out_logprob[r]), name + " logprob");
  }
}
}  // namespace

int main() {
  for (const i64 V : {1, 5, 16, 31, 255, 256, 257, 777, 4999}) {
    for (int trial = 0; trial < (V > 1000 ? 3 : 8); trial++) {
      World world(V, 24);
      for (const Variant* variant : built_variants()) {
        if (!processor_runs(variant->name)) continue;
        const auto sample = reinterpret_cast<Kernel>(const_cast<void*>(find_entry(*variant, "sample")));
        const std::string name = std::string(variant->name) + " V " + std::to_string(V);
        const std::string one = world.run(sample, 1);
        check_ranks(world, name);
        expect(world.run(sample, 3) == one, name + " threads change bits");
      }
    }
  }
  std::printf("sample: %d failures\n", failures);
  return failures != 0;
}
