// Weights as compressed-tensors stores them -> panels as matmul.h reads them: what happens once, when a model is loaded.
#pragma once

#include "matmul.h"

namespace puna {

// 16 rows' words as the products take them: an int4 word's first four values low, the last four high.
INLINE Words arranged(int kind, Words words) {
  if (kind == INT8) return TAKES_UNSIGNED ? words : words ^ 0x80808080u;
  auto spread = [](Words halves) INLINE_LAMBDA {
    halves = (halves | halves << 8) & 0x00ff00ffu;
    return (halves | halves << 4) & 0x0f0f0f0fu;
  };
  return spread(words & 0xffffu) | spread(words >> 16) << 4;
}

// Weights as compressed-tensors stores them -> a packed panel. `words` are rows of values + 8 (two a byte, the first low)
// or + 128, `scales` has `scale_groups` a row; rows beyond the matrix become zeros.
inline void pack_panel(const Matrix& matrix, int panel, const uint8_t* words, size_t row_bytes, const uint8_t* scales,
                       int scale_groups, uint8_t* to) {
  size_t group_bytes = size_t(matrix.group) * matrix.kind / 8;
  Words zeros = Words{} + (matrix.kind == INT4 ? 0x88888888u : 0x80808080u);
  for (int index = 0; index < matrix.groups(); ++index, to += matrix.block_bytes()) {
    for (int half = 0; half < 2; ++half) {
      int first = panel * PANEL + half * LANES, count = std::clamp(matrix.rows - first, 0, LANES);
      const uint8_t* from = words + first * row_bytes + index * group_bytes;
      // A word of each row becomes a vector; `num_rows` is a constant where it can be, for the compiler's sake.
      auto pack = [&](int num_rows) INLINE_LAMBDA {
        for (size_t i = 0; i < group_bytes; i += 4) {
          Words column = zeros;
          for (int row = 0; row < num_rows; ++row) column[row] = load<uint32_t>(from + row * row_bytes + i);
          store(to + (2 * i / 4 + half) * sizeof(Words), arranged(matrix.kind, column));
        }
      };
      if (count == LANES) pack(LANES);
      else pack(count);
    }
    uint8_t* scale = to + matrix.weight_bytes();
    for (int row = panel * PANEL; row < (panel + 1) * PANEL; ++row, scale += matrix.scale_bytes) {
      size_t which = size_t(row) * scale_groups + size_t(index) * matrix.group * scale_groups / matrix.cols;
      if (row < matrix.rows) std::memcpy(scale, scales + which * matrix.scale_bytes, matrix.scale_bytes);
      else std::memset(scale, 0, matrix.scale_bytes);
    }
  }
}

}  // namespace puna
