// Low-rank adapters: what each token's own adapter adds to a matrix's products, scale * up (down x).
//
// Tokens of many adapters stand side by side in a step. First each token's input is multiplied by its adapter's `down`
// (reduce), then what `up` makes of that is added panel by panel to the products with the shared matrix (add). Weights
// and inputs are bfloat16, sums float32. A token's result does not depend on what else is in the step.
#pragma once

#include "matmul.h"

namespace puna {

// Of one matrix; rank 0: nothing is added.
struct Lora {
  const uint16_t* down;  // bfloat16 [rank][cols]
  const uint16_t* up;    // bfloat16 [panels][pairs][PANEL][2]
  int32_t rank;
  float scale;

  int pairs() const { return (rank + 1) / 2; }
};

// A step's tokens with their adapters.
class Adapted {
 public:
  std::vector<const Lora*> adapters;  // for each token, null for none

  // Call when `adapters` is set; `of_adapter` is how many Loras one has.
  void begin(int of_adapter) {
    width_ = 0;
    const Lora* last = nullptr;
    for (const Lora* adapter : adapters) {
      if (!adapter || adapter == last) continue;
      for (int i = 0; i < of_adapter; ++i) width_ = std::max(width_, 2 * adapter[i].pairs());
      last = adapter;
    }
    grow(reduced_, MAX_SLOTS * adapters.size() * width_);
  }

  // Make room for inputs of this width.
  void shape(int cols) {
    cols_ = cols, stride_ = (cols + 2 * LANES - 1) / (2 * LANES) * 2 * LANES;
    if (width_) grow(inputs_, adapters.size() * stride_);
  }

  void set(int token, const float* x) {
    if (!adapters[token]) return;
    uint16_t* to = inputs_.data() + size_t(token) * stride_;
    for (int i = 0; i < cols_; ++i) to[i] = to_bfloat16(x[i]);
    std::fill(to + cols_, to + stride_, 0);
  }

  // Into how many tasks the products with `num_matrices` matrices' `down` are cut; 0: no token has an adapter.
  int tasks(int num_matrices) const { return int(adapters.size()) * num_matrices * chunks(); }

  // Do one task for the matrices `first`, `first + 1`, ... of the adapters.
  void reduce(int task, int first, int num_matrices) {
    int begin = task % chunks() * CHUNK, slot = task / chunks() % num_matrices, token = task / chunks() / num_matrices;
    if (!adapters[token] || begin >= adapters[token][first + slot].rank) return;
    const Lora& lora = adapters[token][first + slot];
    const uint16_t* x = inputs_.data() + size_t(token) * stride_;
    uint16_t* to = reduced(slot, token);
    int end = std::min(begin + CHUNK, lora.rank), row = begin;
    float sums[4];
    auto take = [&](int count) {
      for (int i = 0; i < count; ++i) to[row + i] = to_bfloat16(sums[i] * lora.scale);
      row += count;
    };
    while (row + 4 <= end) multiply_rows<4, 1>(lora.down + size_t(row) * cols_, cols_, x, stride_, sums), take(4);
    while (row < end) multiply_rows<1, 1>(lora.down + size_t(row) * cols_, cols_, x, stride_, sums), take(1);
    if (end == lora.rank && lora.rank % 2) to[lora.rank] = 0;
  }

  // Add what matrix `first + slot` of the token's adapter makes of its input to a panel of products.
  INLINE void add(int token, int first, int slot, int panel, Floats* sums) const {
    if (!width_ || !adapters[token]) return;
    const Lora& lora = adapters[token][first + slot];
    const uint16_t* up = lora.up + size_t(panel) * lora.pairs() * 2 * PANEL;
    const uint16_t* x = reduced(slot, token);
    Floats totals[2] = {};
    for (int pair = 0; pair < lora.pairs(); ++pair, up += 2 * PANEL) {
      Words both = Words{} + load<uint32_t>(x + 2 * pair);
      for (int half = 0; half < 2; ++half)
        totals[half] = dot_pairs(totals[half], load<Words>(up + half * 2 * LANES), both);
    }
    for (int half = 0; half < 2; ++half) sums[half] += totals[half];
  }

 private:
  // Matrices that have their input in common, and rows of a `down` that make a task.
  static constexpr int MAX_SLOTS = 3, CHUNK = 8;

  std::vector<uint16_t> inputs_;   // [tokens][stride]
  std::vector<uint16_t> reduced_;  // [slots][tokens][width]
  int cols_ = 0, stride_ = 0, width_ = 0;

  int chunks() const { return (width_ + CHUNK - 1) / CHUNK; }
  uint16_t* reduced(int slot, int token) {
    return reduced_.data() + (size_t(slot) * adapters.size() + token) * width_;
  }
  const uint16_t* reduced(int slot, int token) const { return const_cast<Adapted*>(this)->reduced(slot, token); }

  static void grow(std::vector<uint16_t>& values, size_t size) {
    if (values.size() < size) values.resize(size);
  }
};

}  // namespace puna
