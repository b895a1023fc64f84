// What this machine can do at most: how fast all threads read memory, and how fast they multiply bytes. hardware.py
// compiles it and takes the time.

#include <atomic>
#include <cstddef>
#include <initializer_list>

#include "vector.h"
#include "amx.h"
#include "team.h"

using namespace puna;

namespace {

// Places that a thread reads from at once: from one place the processor fetches too little ahead.
constexpr int STREAMS = 8;
constexpr size_t PIECE = size_t(4) << 20;

int32_t sum_piece(const uint8_t* piece) {
  constexpr size_t PART = PIECE / STREAMS;
  Ints totals[STREAMS] = {}, all{};
  for (size_t i = 0; i < PART; i += sizeof(Ints))
    for (int stream = 0; stream < STREAMS; ++stream) totals[stream] += load<Ints>(piece + stream * PART + i);
  for (Ints total : totals) all += total;
  return sum_of(all);
}

// 32 tokens x 32 rows x 64 inputs, over and over, out of the nearest cache. Returns the products of one round.
int64_t multiply_tiles(int64_t rounds, int32_t* sums) {
  alignas(64) static int8_t x[32 * 64];
  alignas(64) static uint8_t weights[32 * 64];
  amx::begin(64);
  for (int64_t round = 0; round < rounds; ++round) amx::multiply(x, weights, 64, true);
  amx::finish(true, sums);
  amx::end();
  return 32 * 32 * 64;
}

int64_t multiply_vectors(int64_t rounds, int32_t* sums) {
  constexpr int WIDTH = 12;  // So many sums don't wait for one another.
  Ints totals[WIDTH] = {};
  Bytes weights = load<Bytes>(sums);
  for (int64_t round = 0; round < rounds; ++round)
    for (Ints& total : totals) total = dot_quads<8>(total, weights, int32_t(round));
  for (Ints total : totals) sums[0] += sum_of(total);
  return WIDTH * 64;
}

}  // namespace

extern "C" {

void* open_team(int32_t num_threads) { return new Team(num_threads); }

// Read whole pieces of memory; the sum depends on every byte, so that none can be left out.
int32_t read_memory(void* team_, const uint8_t* data, int64_t size) {
  Team& team = *(Team*)team_;
  std::atomic<int32_t> total{0};
  team.run([&](int) { team.share(int(size / PIECE), [&](int i) { total += sum_piece(data + i * PIECE); }); });
  return total;
}

// Let every thread multiply for so many rounds; return the products (each a multiplication and an addition) of all.
int64_t multiply_bytes(void* team_, int64_t rounds) {
  Team& team = *(Team*)team_;
  std::atomic<int64_t> total{0};
  team.run([&](int) {
    alignas(64) int32_t sums[4 * 16 * 16] = {};
    total += rounds * (amx::fits(64) ? multiply_tiles(rounds, sums) : multiply_vectors(rounds, sums));
  });
  return total;
}
}
