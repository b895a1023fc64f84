// Products of tiles by the matrix unit that some x86 processors have (AMX): eight times the speed of vectors.
#pragma once

#include <cstdint>
#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace puna::amx {

// Fewer tokens are as fast without.
constexpr int LEAST_TOKENS = 6;

#if defined(__AMX_INT8__) && defined(__AMX_BF16__)

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

// NOTE: to the compiler the instructions that load tiles read no memory: what they read has to be written before.
inline void settle() { asm volatile("" ::: "memory"); }

inline void configure(const Config& config) {
  asm volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
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
  configure(config);
}

inline void end() { _tile_release(); }

// 16 or 32 tokens' `group` signed bytes x 32 rows' unsigned weights, into the tiles of sums. Goes on beside what follows.
inline void multiply(const int8_t* x, const uint8_t* weights, int group, bool is_wide) {
  int inputs = group / steps(group);
  settle();
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

// bfloat16: rows of weights as they lie in memory x tokens in tiles of pairs [inputs/2][16 tokens][2].

inline bool fits_halves(int rows, int cols) { return is_granted() && rows >= 32 && cols % 32 == 0; }

inline void begin_halves() {
  Config config;
  for (int tile = 0; tile < 8; ++tile) config.bytes[tile] = 64, config.rows[tile] = 16;
  configure(config);
}

// 32 rows x 16 or 32 tokens -> corners [tokens/16][rows/16][16 rows][16 tokens].
inline void multiply_halves(const uint16_t* rows, int cols, const uint16_t* x, bool is_wide, float* corners) {
  settle();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const uint16_t *lower = rows + size_t(16) * cols, *later = x + 16 * cols;
  for (int i = 0; i < cols; i += 32) {
    _tile_loadd(4, rows + i, 2 * cols);
    _tile_loadd(5, lower + i, 2 * cols);
    _tile_loadd(6, x + 16 * i, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
    if (!is_wide) continue;
    _tile_loadd(7, later + 16 * i, 64);
    _tile_dpbf16ps(2, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, corners, 64);
  _tile_stored(1, corners + 256, 64);
  _tile_stored(2, corners + 512, 64);
  _tile_stored(3, corners + 768, 64);
}

// Attention: queries and weights are 16 rows, keys and values 16 positions of a page, in bfloat16 (attention.h).

inline bool fits_head(int width) { return is_granted() && width % 32 == 0; }

// Tiles: 0-3 sums, 4 queries, 5 weights, 6 keys, 7 values.
inline void begin_attention() {
  Config config;
  for (int tile = 0; tile < 8; ++tile) config.bytes[tile] = 64, config.rows[tile] = 16;
  config.bytes[5] = 32;
  config.rows[7] = 8;
  configure(config);
}

// Scores of 16 query rows and the positions of up to four pages: [16][stride] floats, a page's 16 beside one another.
inline void score(const uint16_t* queries, int width, const uint16_t* const* keys, int num_pages, float* to, int stride) {
  settle();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  auto key = [&](int page, int e) { return keys[page < num_pages ? page : 0] + e * 16; };
  for (int e = 0; e < width; e += 32) {
    _tile_loadd(4, queries + e, 2 * width);
    _tile_loadd(6, key(0, e), 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(6, key(1, e), 64);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(6, key(2, e), 64);
    _tile_dpbf16ps(2, 4, 6);
    _tile_loadd(6, key(3, e), 64);
    _tile_dpbf16ps(3, 4, 6);
  }
  _tile_stored(0, to, 4 * stride);
  _tile_stored(1, to + 16, 4 * stride);
  _tile_stored(2, to + 32, 4 * stride);
  _tile_stored(3, to + 48, 4 * stride);
}

// Add 16 rows' weights [16][weight_stride] x the values of some pages to sums [16][width], 32 columns at a time.
inline void mix(const uint16_t* weights, int weight_stride, const uint16_t* const* values, int num_pages, int width,
                float* sums) {
  settle();
  for (int column = 0; column < width; column += 32) {
    _tile_loadd(0, sums + column, 4 * width);
    _tile_loadd(1, sums + column + 16, 4 * width);
    for (int page = 0; page < num_pages; ++page) {
      _tile_loadd(5, weights + 16 * page, 2 * weight_stride);
      _tile_loadd(7, values[page] + 2 * column, 4 * width);
      _tile_dpbf16ps(0, 5, 7);
      _tile_loadd(7, values[page] + 2 * (column + 16), 4 * width);
      _tile_dpbf16ps(1, 5, 7);
    }
    _tile_stored(0, sums + column, 4 * width);
    _tile_stored(1, sums + column + 16, 4 * width);
  }
}

#else

inline bool fits_halves(int, int) { return false; }
inline void begin_halves() {}
inline void multiply_halves(const uint16_t*, int, const uint16_t*, bool, float*) {}
inline bool fits_head(int) { return false; }
inline void begin_attention() {}
inline void score(const uint16_t*, int, const uint16_t* const*, int, float*, int) {}
inline void mix(const uint16_t*, int, const uint16_t* const*, int, int, float*) {}
inline bool fits(int) { return false; }
inline void begin(int) {}
inline void end() {}
inline void multiply(const int8_t*, const uint8_t*, int, bool) {}
inline void finish(bool, int32_t*) {}

#endif

}  // namespace puna::amx
