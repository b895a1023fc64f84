// Products of byte tiles by the matrix unit that some x86 processors have (AMX): eight times the speed of vectors.
#pragma once

#include <cstdint>
#if defined(__AMX_INT8__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace puna::amx {

// Fewer tokens are as fast without.
constexpr int LEAST_TOKENS = 6;

#if defined(__AMX_INT8__)

struct alignas(64) Config {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// The system grants the unit's registers to a process that asks for them.
inline bool is_granted() {
  constexpr int REQUEST = 0x1023, TILE_DATA = 18;
  static const bool granted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return granted;
}

// A group is multiplied in equal steps of at most 64 inputs.
inline int steps(int group) { return (group + 63) / 64; }
inline bool fits(int group) { return is_granted() && group % (4 * steps(group)) == 0; }

// Set this thread's tiles for groups of this size: 0-3 sums, 4-5 activations, 6-7 weights.
inline void begin(int group) {
  int inputs = group / steps(group);
  Config config;
  for (int tile = 0; tile < 8; ++tile) {
    config.bytes[tile] = tile == 4 || tile == 5 ? inputs : 64;
    config.rows[tile] = tile < 6 ? 16 : inputs / 4;
  }
  _tile_loadconfig(&config);
}

inline void end() { _tile_release(); }

// 16 or 32 tokens' `group` signed bytes x 32 rows' unsigned weights, into the tiles of sums. Goes on beside what follows.
inline void multiply(const int8_t* x, const uint8_t* weights, int group, bool is_wide) {
  int inputs = group / steps(group);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int step = 0; step < steps(group); ++step, x += inputs, weights += inputs / 4 * 128) {
    _tile_loadd(4, x, group);
    _tile_loadd(6, weights, 128);
    _tile_loadd(7, weights + 64, 128);
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    if (!is_wide) continue;
    _tile_loadd(5, x + 16 * group, group);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
  }
}

// The sums as four corners [tokens/16][rows/16][16][16].
inline void finish(bool is_wide, int32_t* corners) {
  _tile_stored(0, corners, 64);
  _tile_stored(1, corners + 256, 64);
  if (!is_wide) return;
  _tile_stored(2, corners + 512, 64);
  _tile_stored(3, corners + 768, 64);
}

#else

inline bool fits(int) { return false; }
inline void begin(int) {}
inline void end() {}
inline void multiply(const int8_t*, const uint8_t*, int, bool) {}
inline void finish(bool, int32_t*) {}

#endif

}  // namespace puna::amx
