// Quantized or bfloat16 weights x a step's activations, a panel of 32 output rows at a time.
//
// int4 and int8 weights are packed: for each panel and group of inputs first the weights, so that 64 bytes are 16 rows x 4
// inputs (int8) or 16 rows x 8 inputs (int4: low halves the first four), then 32 scales. Activations are rounded to int8
// for each token and group; inside a group all is integer, and the groups are added in order, so a token's result
// depends neither on what else is in the step nor on the instructions used (but for processors that round a * b + c twice:
// x86 without FMA). bfloat16 weights are rows as they lie in the file.
#pragma once

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "amx.h"
#include "vector.h"

namespace puna {

constexpr int PANEL = 32;
// Tokens whose sums stay in the nearest cache while a panel's groups go by.
constexpr int BLOCK = 128;
// Tokens at once in the registers of one tile.
constexpr int TILE = 12;
constexpr int MAX_GROUP = 128;
// Panels that few tokens are multiplied by at once.
constexpr int BUNDLE = 8;
constexpr int FEW = 5;
// Bytes between what is read and what is fetched when memory is all that counts.
constexpr int AHEAD = 512;
// The same where a panel is read alone, by many tokens.
constexpr int FAR_AHEAD = 4096;

enum Kind : int32_t { BFLOAT16 = 0, INT4 = 4, INT8 = 8 };

struct Matrix {
  const uint8_t* data;
  int32_t kind, rows, cols, group;  // group: inputs that share a scale
  int32_t scale_bytes;              // 2: bfloat16, 4: float32

  int panels() const { return (rows + PANEL - 1) / PANEL; }
  int groups() const { return cols / group; }
  size_t weight_bytes() const { return size_t(PANEL) * group * kind / 8; }
  size_t block_bytes() const { return weight_bytes() + size_t(PANEL) * scale_bytes; }
  const uint8_t* block(int panel, int index) const {
    return data + (size_t(panel) * groups() + index) * block_bytes();
  }
  Floats scales(const uint8_t* block, int half) const {
    const uint8_t* from = block + weight_bytes() + half * LANES * scale_bytes;
    return scale_bytes == 4 ? load<Floats>(from) : from_bfloat16(load<Halves>(from));
  }
};

// A step's activations as a matrix wants them. Tokens are padded to whole AMX tiles.
class Activations {
 public:
  int tokens = 0, cols = 0, group = 0, padded = 0;
  std::vector<int8_t> bytes;      // [groups][padded][group]
  std::vector<float> scales;      // [groups][padded]
  std::vector<int32_t> offsets;   // [groups][padded]: what makes up for weights that are stored too large
  std::vector<uint16_t> halves;   // bfloat16: [padded][stride], or if `is_tiled` [padded/16][cols/2][16][2]
  bool is_tiled = false;

  void shape(const Matrix& matrix, int num_tokens) {
    tokens = num_tokens, cols = matrix.cols, group = matrix.kind == BFLOAT16 ? 0 : matrix.group;
    padded = (tokens + 2 * LANES - 1) / (2 * LANES) * 2 * LANES;
    is_tiled = !group && tokens >= amx::LEAST_TOKENS && amx::fits_halves(matrix.rows, cols);
    if (!group) return grow(halves, size_t(padded) * stride());
    grow(bytes, size_t(padded) * cols);
    grow(scales, size_t(padded) * (cols / group));
    grow(offsets, size_t(padded) * (cols / group));
    offset_ = matrix.kind == INT4 ? -weight_offset<4>() : -weight_offset<8>();
  }

  // How many panels few tokens are multiplied by side by side: memory is read in as many places at once, since from one
  // alone the processor fetches too little ahead. With more tokens memory is not what counts.
  int bundle() const {
    if (!group || tokens > FEW) return 1;
    return tokens == 1 ? BUNDLE : tokens <= 3 ? BUNDLE / 2 : BUNDLE / 4;
  }

  // bfloat16 rows end in zeros up to whole vectors of pairs.
  int stride() const { return (cols + 2 * LANES - 1) / (2 * LANES) * 2 * LANES; }
  size_t at(int index, int token) const { return size_t(index) * padded + token; }

  void set(int token, const float* x) {
    if (!group) return set_halves(token, x);
    for (int index = 0; index < cols / group; ++index) set_group(index, token, x + index * group);
  }

 private:
  int offset_ = 0;

  template <class T> static void grow(std::vector<T>& values, size_t size) {
    if (values.size() < size) values.resize(size);
  }

  void set_halves(int token, const float* x) {
    if (is_tiled) {
      uint16_t* tile = halves.data() + size_t(token / LANES) * LANES * cols + token % LANES * 2;
      for (int i = 0; i < cols; ++i) tile[i / 2 * 2 * LANES + i % 2] = to_bfloat16(x[i]);
      return;
    }
    uint16_t* to = halves.data() + size_t(token) * stride();
    to_bfloat16(x, cols, to);
    for (int i = cols; i < stride(); ++i) to[i] = 0;
  }

  void set_group(int index, int token, const float* x) {
    size_t place = at(index, token);
    Rounding rounding = round_to_bytes(x, group, bytes.data() + place * group);
    scales[place] = rounding.scale;
    offsets[place] = offset_ * rounding.total;
  }
};

// A panel of some matrix.
struct Panel {
  const Matrix* matrix;
  int index;

  const uint8_t* block(int group) const { return matrix->block(index, group); }
};

// Sums of a bundle's panels, or of two for up to BLOCK tokens: [panel][token][half]; and one group's weights, a byte each.
struct Scratch {
  alignas(64) Floats sums[2 * BLOCK * 2];
  alignas(64) Bytes operands[MAX_GROUP / 4 * 2];
  alignas(64) int32_t corners[4 * LANES * LANES];
};

INLINE void prefetch(const void* from, int size) {
  for (int i = 0; i < size; i += 64) __builtin_prefetch((const int8_t*)from + i);
}

INLINE void accumulate(Floats& total, Ints products, Floats scale, float x_scale) {
  total += to_floats(products) * (scale * x_scale);
}

// The weights of 16 rows x 4 inputs: those of eight inputs (`pair`) that come first or second.
template <int BITS> INLINE Bytes operand(const uint8_t* block, size_t pair, int second, int half) {
  if (BITS == 8) return load<Bytes>(block + 256 * pair + (2 * second + half) * 64);
  Bytes bytes = load<Bytes>(block + 128 * pair + half * 64);
  return second ? bytes >> 4 : bytes & 15;
}

// P panels x T tokens in registers: few tokens, for which reading the weights is what takes time.
template <int BITS, int T, int P> void multiply_few(const Panel* panels, const Activations& x, Floats* sums) {
  const uint8_t* blocks[P];
  for (int p = 0; p < P; ++p) blocks[p] = panels[p].block(0);
  std::fill_n(sums, 2 * P * T, Floats{});
  for (int index = 0; index < x.cols / x.group; ++index) {
    Ints totals[P][T][2];
    size_t at = x.at(index, 0);
    const int8_t* bytes = x.bytes.data() + at * x.group;
    for (int p = 0; p < P; ++p)
      for (int t = 0; t < T; ++t) totals[p][t][0] = totals[p][t][1] = splat(x.offsets[at + t]);
    for (size_t pair = 0, num_pairs = x.group / 8; pair < num_pairs; ++pair)
      for (int second = 0; second < 2; ++second) {
        for (int p = 0; p < P; ++p) {
          prefetch(blocks[p] + AHEAD + (2 * pair + second) * 16 * BITS, 16 * BITS);
          Bytes low = operand<BITS>(blocks[p], pair, second, 0), high = operand<BITS>(blocks[p], pair, second, 1);
          for (int t = 0; t < T; ++t) {
            int32_t quad = load<int32_t>(bytes + size_t(t) * x.group + 8 * pair + 4 * second);
            totals[p][t][0] = dot_quads<BITS>(totals[p][t][0], low, quad);
            totals[p][t][1] = dot_quads<BITS>(totals[p][t][1], high, quad);
          }
        }
      }
    for (int p = 0; p < P; ++p) {
      for (int t = 0; t < T; ++t)
        for (int half = 0; half < 2; ++half)
          accumulate(sums[2 * (p * T + t) + half], totals[p][t][half], panels[p].matrix->scales(blocks[p], half),
                     x.scales[at + t]);
      blocks[p] += panels[p].matrix->block_bytes();
    }
  }
}

// A bundle of panels, or what is left of one, x T tokens.
template <int BITS, int T> void multiply_bundle(const Panel* panels, int count, const Activations& x, Floats* sums) {
  constexpr int P = T == 1 ? BUNDLE : T <= 3 ? BUNDLE / 2 : BUNDLE / 4;
  if (count == P) return multiply_few<BITS, T, P>(panels, x, sums);
  for (int p = 0; p < count; ++p) multiply_few<BITS, T, 1>(panels + p, x, sums + 2 * p * T);
}

template <int BITS> void multiply_bundle(const Panel* panels, int count, const Activations& x, Floats* sums) {
  static_assert(FEW == 5);
  if (x.tokens == 1) multiply_bundle<BITS, 1>(panels, count, x, sums);
  else if (x.tokens == 2) multiply_bundle<BITS, 2>(panels, count, x, sums);
  else if (x.tokens == 3) multiply_bundle<BITS, 3>(panels, count, x, sums);
  else if (x.tokens == 4) multiply_bundle<BITS, 4>(panels, count, x, sums);
  else multiply_bundle<BITS, 5>(panels, count, x, sums);
}

// One group of a panel x T tokens in registers.
template <int BITS, int T>
void multiply_tile(const Bytes* operands, const Activations& x, int index, int first, const Floats* scales,
                   Floats* sums) {
  Ints totals[T][2];
  size_t at = x.at(index, first);
  const int8_t* bytes = x.bytes.data() + at * x.group;
  for (int t = 0; t < T; ++t) totals[t][0] = totals[t][1] = splat(x.offsets[at + t]);
  for (size_t four = 0; four < size_t(x.group / 4); ++four)
    for (int t = 0; t < T; ++t) {
      int32_t quad = load<int32_t>(bytes + size_t(t) * x.group + 4 * four);
      for (int half = 0; half < 2; ++half)
        totals[t][half] = dot_quads<BITS>(totals[t][half], operands[2 * four + half], quad);
    }
  for (int t = 0; t < T; ++t)
    for (int half = 0; half < 2; ++half) accumulate(sums[2 * t + half], totals[t][half], scales[half], x.scales[at + t]);
}

// The tiles for 1, 2, ... TILE tokens.
using Tile = void (*)(const Bytes*, const Activations&, int, int, const Floats*, Floats*);
template <int BITS, int... T> constexpr std::array<Tile, TILE> tiles(std::integer_sequence<int, T...>) {
  return {multiply_tile<BITS, T + 1>...};
}

// The same by AMX: 32 tokens x 32 rows at a time. While the unit multiplies some, the sums of those before are scaled.
template <int BITS>
void multiply_amx(const Activations& x, int index, int first, int count, const Floats* scales, Scratch& scratch,
                  Floats* to) {
  constexpr int SIDE = 2 * LANES;
  auto scale = [&](int start) INLINE_LAMBDA {
    size_t at = x.at(index, first + start);
    int num_tokens = std::min(count - start, SIDE);
    for (int t = 0; t < num_tokens; ++t) {
      const int32_t* corner = scratch.corners + (t / LANES * 2 * LANES + t % LANES) * LANES;
      Floats* sums = to + 2 * (start + t);
      Ints offset = splat(x.offsets[at + t]);
      prefetch(x.bytes.data() + (at + t + 2 * SIDE) * x.group, x.group);
      accumulate(sums[0], load<Ints>(corner) + offset, scales[0], x.scales[at + t]);
      accumulate(sums[1], load<Ints>(corner + LANES * LANES) + offset, scales[1], x.scales[at + t]);
    }
  };
  for (int start = 0; start < count; start += SIDE) {
    bool is_wide = count - start > LANES;
    const int8_t* bytes = x.bytes.data() + x.at(index, first + start) * x.group;
    amx::multiply(bytes, (const uint8_t*)scratch.operands, x.group, is_wide);
    if (start) scale(start - SIDE);
    amx::finish(is_wide, scratch.corners);
  }
  scale((count - 1) / SIDE * SIDE);
}

// Sums of a panel over all groups for `count` tokens (at most BLOCK) from `first` on: sums[token][half].
template <int BITS>
void multiply_integers(const Panel& panel, const Activations& x, int first, int count, Scratch& scratch, Floats* sums) {
  static constexpr auto TILES = tiles<BITS>(std::make_integer_sequence<int, TILE>{});
  std::fill_n(sums, 2 * count, Floats{});
  int num_tiles = (count + TILE - 1) / TILE;
  bool uses_amx = count >= amx::LEAST_TOKENS && amx::fits(x.group);
  for (int index = 0; index < x.cols / x.group; ++index) {
    const uint8_t* block = panel.block(index);
    Floats scales[2] = {panel.matrix->scales(block, 0), panel.matrix->scales(block, 1)};
    prefetch(block + FAR_AHEAD, int(panel.matrix->block_bytes()));
    for (int pair = 0; pair < x.group / 8; ++pair)
      for (int i = 0; i < 4; ++i) scratch.operands[4 * pair + i] = operand<BITS>(block, pair, i / 2, i % 2);
    if (uses_amx) {
      multiply_amx<BITS>(x, index, first, count, scales, scratch, sums);
      continue;
    }
    for (int tile = 0, start = 0; tile < num_tiles; ++tile) {
      int size = (count - start) / (num_tiles - tile);
      TILES[size - 1](scratch.operands, x, index, first + start, scales, sums + 2 * start);
      start += size;
    }
  }
}

// bfloat16: R rows x T tokens in registers, lanes along the inputs.
template <int R, int T>
INLINE void multiply_rows(const uint16_t* rows, int cols, const uint16_t* x, int stride, float* sums) {
  Floats totals[R][T] = {};
  int whole = cols / (2 * LANES) * 2 * LANES;
  for (int i = 0; i < whole; i += 2 * LANES)
    for (int r = 0; r < R; ++r) {
      Words weights = load<Words>(rows + size_t(r) * cols + i);
      if (T == 1) __builtin_prefetch(rows + size_t(r + R) * cols + i);  // What comes next is on other pages.
      for (int t = 0; t < T; ++t) totals[r][t] = dot_pairs(totals[r][t], weights, load<Words>(x + t * stride + i));
    }
  if (whole < cols)
    for (int r = 0; r < R; ++r) {
      Words weights{};
      std::memcpy(&weights, rows + size_t(r) * cols + whole, 2 * (cols - whole));
      for (int t = 0; t < T; ++t) totals[r][t] = dot_pairs(totals[r][t], weights, load<Words>(x + t * stride + whole));
    }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) sums[t * PANEL + r] = sum(totals[r][t]);
}

template <int T>
void multiply_rows_of(const Matrix& matrix, int panel, const Activations& x, int first, float* sums) {
  constexpr int R = T == 1 ? 8 : 4;
  int begin = panel * PANEL, end = std::min(begin + PANEL, matrix.rows), row = begin;
  const uint16_t* rows = (const uint16_t*)matrix.data;
  const uint16_t* tokens = x.halves.data() + size_t(first) * x.stride();
  for (; row + R <= end; row += R)
    multiply_rows<R, T>(rows + size_t(row) * matrix.cols, matrix.cols, tokens, x.stride(), sums + row - begin);
  for (; row < end; ++row)
    multiply_rows<1, T>(rows + size_t(row) * matrix.cols, matrix.cols, tokens, x.stride(), sums + row - begin);
}

// The same by AMX. The last panel reaches back so as to be whole.
inline void multiply_halves_amx(const Matrix& matrix, int panel, const Activations& x, int first, int count,
                                Scratch& scratch, float* sums) {
  int begin = std::min(panel * PANEL, matrix.rows - PANEL), skipped = panel * PANEL - begin;
  const uint16_t* rows = (const uint16_t*)matrix.data + size_t(begin) * matrix.cols;
  float* corners = (float*)scratch.corners;
  for (int start = 0; start < count; start += PANEL) {
    int num_tokens = std::min(count - start, PANEL);
    const uint16_t* tokens = x.halves.data() + size_t(first + start) * matrix.cols;
    amx::multiply_halves(rows, matrix.cols, tokens, num_tokens > LANES, corners);
    for (int t = 0; t < num_tokens; ++t)
      for (int r = skipped; r < PANEL; ++r)
        sums[(start + t) * PANEL + r - skipped] = corners[(t / LANES * PANEL + r) * LANES + t % LANES];
  }
}

inline void multiply_halves(const Panel& panel, const Activations& x, int first, int count, Scratch& scratch,
                            float* sums) {
  const Matrix& matrix = *panel.matrix;
  if (x.is_tiled) return multiply_halves_amx(matrix, panel.index, x, first, count, scratch, sums);
  constexpr int T = 6;
  int start = 0;
  auto multiply = [&](auto tokens) {
    constexpr int COUNT = decltype(tokens)::value;
    multiply_rows_of<COUNT>(matrix, panel.index, x, first + start, sums + start * PANEL);
    start += COUNT;
  };
  while (start + T <= count) multiply(std::integral_constant<int, T>());
  while (start + 2 <= count) multiply(std::integral_constant<int, 2>());
  if (start < count) multiply(std::integral_constant<int, 1>());
}

// Products of a bundle of panels, or of two, with `count` tokens from `first` on: scratch.sums[panel][token][half].
inline void multiply_panels(const Panel* panels, int num_panels, const Activations& x, int first, int count,
                            Scratch& scratch) {
  int kind = panels[0].matrix->kind;
  if (x.group && x.tokens <= FEW)
    return kind == INT4 ? multiply_bundle<4>(panels, num_panels, x, scratch.sums)
                        : multiply_bundle<8>(panels, num_panels, x, scratch.sums);
  for (int p = 0; p < num_panels; ++p) {
    Floats* sums = scratch.sums + 2 * p * count;
    if (kind == INT4) multiply_integers<4>(panels[p], x, first, count, scratch, sums);
    else if (kind == INT8) multiply_integers<8>(panels[p], x, first, count, scratch, sums);
    else multiply_halves(panels[p], x, first, count, scratch, (float*)sums);
  }
}

// One row as floats: a token's embedding.
inline void read_row(const Matrix& matrix, int row, float* to) {
  if (matrix.kind == BFLOAT16) {
    const uint16_t* halves = (const uint16_t*)matrix.data + size_t(row) * matrix.cols;
    for (int i = 0; i < matrix.cols; ++i) to[i] = from_bfloat16(halves[i]);
    return;
  }
  int half = row % PANEL / LANES, lane = row % LANES;
  for (int index = 0; index < matrix.groups(); ++index) {
    const uint8_t* block = matrix.block(row / PANEL, index);
    float scale = matrix.scales(block, half)[lane];
    for (int i = 0; i < matrix.group; ++i) {
      Bytes bytes = matrix.kind == INT4 ? operand<4>(block, i / 8, i / 4 % 2, half)
                                        : operand<8>(block, i / 8, i / 4 % 2, half);
      int byte = bytes[4 * lane + i % 4];
      int value = matrix.kind == INT4 ? byte - 8 : TAKES_UNSIGNED ? byte - 128 : int8_t(byte);
      to[index * matrix.group + i] = value * scale;
    }
  }
}

}  // namespace puna
