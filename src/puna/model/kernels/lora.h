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
    to_bfloat16(x, cols_, to);
    std::fill(to + cols_, to + stride_, 0);
  }

  // Into how many tasks the products with `num_matrices` matrices' `down` are cut; 0: no token has an adapter.
  int tasks(int num_matrices) const { return blocks() * num_matrices * chunks(); }

  // Do one task for the matrices `first`, `first + 1`, ... of the adapters.
  void reduce(int task, int first, int num_matrices) {
    int begin = task % chunks() * CHUNK, slot = task / chunks() % num_matrices, block = task / chunks() / num_matrices;
    int token = block * NEIGHBOURS, end = std::min(token + NEIGHBOURS, int(adapters.size()));
    for_neighbours(token, end, [&](const Lora* adapter, int place, auto count) {
      const Lora& lora = adapter[first + slot];
      for (int row = begin; row < std::min(begin + CHUNK, lora.rank); row += ROWS)
        reduce_rows<decltype(count)::value>(lora, row, std::min(ROWS, lora.rank - row), slot, place);
    });
  }

  // Add what matrix `first + slot` of each token's adapter makes of its input to a panel of products.
  void add(int token, int num_tokens, int first, int slot, int panel, Floats* sums) const {
    if (!width_) return;
    for_neighbours(token, token + num_tokens, [&](const Lora* adapter, int place, auto count) {
      add_tokens<decltype(count)::value>(adapter[first + slot], panel, slot, place, sums + 2 * (place - token));
    });
  }

 private:
  // Matrices that have their input in common; a task's rows of a `down` and its tokens; rows multiplied at once.
  static constexpr int MAX_SLOTS = 3, CHUNK = 8, NEIGHBOURS = 4, ROWS = 4;

  std::vector<uint16_t> inputs_;   // [tokens][stride]
  std::vector<uint16_t> reduced_;  // [slots][tokens][width]
  int cols_ = 0, stride_ = 0, width_ = 0;

  int blocks() const { return (int(adapters.size()) + NEIGHBOURS - 1) / NEIGHBOURS; }
  int chunks() const { return (width_ + CHUNK - 1) / CHUNK; }
  uint16_t* reduced(int slot, int token) {
    return reduced_.data() + (size_t(slot) * adapters.size() + token) * width_;
  }
  const uint16_t* reduced(int slot, int token) const { return const_cast<Adapted*>(this)->reduced(slot, token); }

  // Call body(adapter, token, count) for tokens side by side that have one adapter, up to NEIGHBOURS at a time.
  template <class Body> void for_neighbours(int token, int end, Body&& body) const {
    while (token < end) {
      const Lora* adapter = adapters[token];
      int count = 1;
      while (count < NEIGHBOURS && token + count < end && adapters[token + count] == adapter) ++count;
      if (!adapter) {
      } else if (count == 4) body(adapter, token, std::integral_constant<int, 4>());
      else if (count == 3) body(adapter, token, std::integral_constant<int, 3>());
      else if (count == 2) body(adapter, token, std::integral_constant<int, 2>());
      else body(adapter, token, std::integral_constant<int, 1>());
      token += count;
    }
  }

  template <int T> void reduce_rows(const Lora& lora, int row, int num_rows, int slot, int token) {
    const uint16_t *rows = lora.down + size_t(row) * cols_, *x = inputs_.data() + size_t(token) * stride_;
    float sums[T * PANEL];
    if (num_rows == ROWS) multiply_rows<ROWS, T>(rows, cols_, x, stride_, sums);
    else
      for (int r = 0; r < num_rows; ++r) multiply_rows<1, T>(rows + size_t(r) * cols_, cols_, x, stride_, sums + r);
    for (int t = 0; t < T; ++t) {
      uint16_t* to = reduced(slot, token + t);
      for (int r = 0; r < num_rows; ++r) to[row + r] = to_bfloat16(sums[t * PANEL + r] * lora.scale);
      if (row + num_rows == lora.rank && lora.rank % 2) to[lora.rank] = 0;
    }
  }

  template <int T> void add_tokens(const Lora& lora, int panel, int slot, int token, Floats* sums) const {
    const uint16_t* up = lora.up + size_t(panel) * lora.pairs() * 2 * PANEL;
    const uint16_t* x = reduced(slot, token);
    Floats totals[T][2] = {};
    for (int pair = 0; pair < lora.pairs(); ++pair, up += 2 * PANEL)
      for (int t = 0; t < T; ++t) {
        Words both = Words{} + load<uint32_t>(x + t * width_ + 2 * pair);
        for (int half = 0; half < 2; ++half)
          totals[t][half] = dot_pairs(totals[t][half], load<Words>(up + half * 2 * LANES), both);
      }
    for (int t = 0; t < T; ++t)
      for (int half = 0; half < 2; ++half) sums[2 * t + half] += totals[t][half];
  }

  static void grow(std::vector<uint16_t>& values, size_t size) {
    if (values.size() < size) values.resize(size);
  }
};

}  // namespace puna
