// Causal attention over keys and values that lie in pages of 16 positions.
//
// A page holds, for each layer and key/value head, keys as [E/2][16][2] and values as [8][E padded][2]: pairs that one
// instruction multiplies, positions side by side for keys, the head's width side by side for values. bfloat16, or int8
// with a float scale for each position behind them. Sums run over chunks of 64 positions that begin at multiples of 64,
// so a token's result is the same whether it comes in a prompt, in a piece of one or alone.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "amx.h"
#include "vector.h"

namespace puna {

constexpr int PAGE = 16;
constexpr int CHUNK = 64;
constexpr int CHUNK_PAGES = CHUNK / PAGE;
// Query rows (tokens x heads that share keys) of one task; rows whose scores are in registers together.
constexpr int QUERY_ROWS = 64;
constexpr int SCORE_ROWS = 8;
constexpr int VALUE_ROWS = 4;
constexpr int MAX_HEAD = 256;

struct Pages {
  uint8_t* base;
  int64_t layer_bytes, page_bytes, head_bytes;
  int32_t head_dim, is_int8;

  uint8_t* head(int layer, int page, int kv_head) const {
    return base + layer * layer_bytes + page * page_bytes + kv_head * head_bytes;
  }
  // Values are padded with zeros to whole vectors.
  int padded() const { return (head_dim + LANES - 1) / LANES * LANES; }
  int values_at() const { return PAGE * head_dim * (is_int8 ? 1 : 2); }
  int scales_at() const { return values_at() + PAGE * padded() * (is_int8 ? 1 : 2); }
};

inline int key_at(int slot, int e) { return (e / 2 * PAGE + slot) * 2 + e % 2; }
inline int value_at(int slot, int e, int padded) { return (slot / 2 * padded + e) * 2 + slot % 2; }

// Write one position's key and value of one head; the key comes rotated.
inline void write_position(const Pages& pages, uint8_t* head, int slot, const float* key, const float* value) {
  int width = pages.head_dim;
  if (!pages.is_int8) {
    uint16_t *keys = (uint16_t*)head, *values = (uint16_t*)(head + pages.values_at());
    for (int e = 0; e < width; ++e) {
      keys[key_at(slot, e)] = to_bfloat16(key[e]);
      values[value_at(slot, e, pages.padded())] = to_bfloat16(value[e]);
    }
    return;
  }
  int8_t *keys = (int8_t*)head, *values = (int8_t*)(head + pages.values_at()), bytes[MAX_HEAD];
  float* scales = (float*)(head + pages.scales_at());
  scales[slot] = round_to_bytes(key, width, bytes).scale;
  for (int e = 0; e < width; ++e) keys[key_at(slot, e)] = bytes[e];
  scales[PAGE + slot] = round_to_bytes(value, width, bytes).scale;
  for (int e = 0; e < width; ++e) values[value_at(slot, e, pages.padded())] = bytes[e];
}

// What one thread needs: a task's queries, running sums and a chunk's scores.
class AttentionScratch {
 public:
  explicit AttentionScratch(const Pages& pages)
      : queries(QUERY_ROWS * pages.head_dim), widened(CHUNK * pages.padded()), sums(QUERY_ROWS * pages.padded()) {}
  std::vector<uint16_t> queries;  // [row][E] bfloat16, scaled
  std::vector<uint16_t> widened;  // a chunk's keys or values as bfloat16
  std::vector<float> sums;        // [row][E padded]
  alignas(64) float scores[QUERY_ROWS][CHUNK];
  alignas(64) uint16_t weights[QUERY_ROWS][CHUNK];
  float most[QUERY_ROWS], mass[QUERY_ROWS];
  int length[QUERY_ROWS];  // positions that a row sees
};

template <int R> INLINE void score_page(const uint16_t* queries, const uint16_t* keys, int width, float (*to)[CHUNK]) {
  Floats totals[R] = {};
  for (int pair = 0; pair < width / 2; ++pair) {
    Words lanes = load<Words>(keys + pair * 2 * PAGE);
    for (int r = 0; r < R; ++r)
      totals[r] = dot_pairs(totals[r], lanes, load<uint32_t>(queries + r * width + 2 * pair) + Words{});
  }
  for (int r = 0; r < R; ++r) store(to[r], totals[r]);
}

// Add weights x values of one page to R rows' sums, two vectors of columns at a time.
template <int R>
INLINE void mix_page(const uint16_t (*weights)[CHUNK], const uint16_t* values, int width, float* sums) {
  for (int column = 0; column < width; column += 2 * LANES) {
    int vectors = std::min(2, (width - column) / LANES);
    Floats totals[R][2];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < vectors; ++v) totals[r][v] = load<Floats>(sums + r * width + column + v * LANES);
    for (int pair = 0; pair < PAGE / 2; ++pair)
      for (int v = 0; v < vectors; ++v) {
        Words lanes = load<Words>(values + (pair * width + column + v * LANES) * 2);
        for (int r = 0; r < R; ++r)
          totals[r][v] = dot_pairs(totals[r][v], lanes, load<uint32_t>(weights[r] + 2 * pair) + Words{});
      }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < vectors; ++v) store(sums + r * width + column + v * LANES, totals[r][v]);
  }
}

// One chunk's scores of a row -> weights in bfloat16; rescale what has been summed so far.
inline void weigh(AttentionScratch& s, int row, int chunk, int width) {
  int seen = std::clamp(s.length[row] - chunk * CHUNK, 0, CHUNK);
  if (seen == 0) {
    std::fill_n(s.weights[row], CHUNK, uint16_t(0));
    return;
  }
  float* scores = s.scores[row];
  std::fill(scores + seen, scores + CHUNK, -std::numeric_limits<float>::infinity());
  Floats most = splat(s.most[row]);
  for (int i = 0; i < CHUNK; i += LANES) most = larger(load<Floats>(scores + i), most);
  float peak = largest(most);
  Floats mass{};
  for (int i = 0; i < CHUNK; i += LANES) {
    Floats weights = exp(load<Floats>(scores + i) - peak);
    mass += weights;
    store(scores + i, weights);
  }
  for (int i = 0; i < CHUNK; ++i) s.weights[row][i] = to_bfloat16(scores[i]);
  if (peak > s.most[row]) {
    float shrink = std::exp(s.most[row] - peak);
    s.mass[row] *= shrink;
    for (int e = 0; e < width; ++e) s.sums[row * width + e] *= shrink;
  }
  s.most[row] = peak;
  s.mass[row] += sum(mass);
}

// A chunk's keys or values as bfloat16, a pointer a page. The scales of int8 are applied to scores and weights.
struct ChunkPages {
  const uint8_t* heads[CHUNK_PAGES];
  const uint16_t* halves[CHUNK_PAGES];
  int num_pages;

  void take(const Pages& pages, int offset, int count, AttentionScratch& s) {
    for (int page = 0; page < num_pages; ++page) {
      const uint8_t* from = heads[page] + offset;
      uint16_t* widened = s.widened.data() + page * PAGE * pages.padded();
      if (pages.is_int8) widen((const int8_t*)from, widened, count);
      halves[page] = pages.is_int8 ? widened : (const uint16_t*)from;
    }
  }
};

inline void score_chunk(const ChunkPages& chunk, int num_rows, int width, bool uses_amx, AttentionScratch& s) {
  if (uses_amx) {
    for (int row = 0; row < num_rows; row += LANES)
      amx::score(s.queries.data() + row * width, width, chunk.halves, chunk.num_pages, s.scores[row], CHUNK);
    return;
  }
  for (int page = 0; page < chunk.num_pages; ++page) {
    auto scores = [&](int row) { return (float (*)[CHUNK])(s.scores[row] + page * PAGE); };
    int row = 0;
    for (; row + SCORE_ROWS <= num_rows; row += SCORE_ROWS)
      score_page<SCORE_ROWS>(s.queries.data() + row * width, chunk.halves[page], width, scores(row));
    for (; row < num_rows; ++row) score_page<1>(s.queries.data() + row * width, chunk.halves[page], width, scores(row));
  }
}

inline void mix_chunk(const ChunkPages& chunk, int num_rows, int padded, bool uses_amx, AttentionScratch& s) {
  if (uses_amx) {
    for (int row = 0; row < num_rows; row += LANES)
      amx::mix(s.weights[row], CHUNK, chunk.halves, chunk.num_pages, padded, s.sums.data() + row * padded);
    return;
  }
  for (int page = 0; page < chunk.num_pages; ++page) {
    auto weights = [&](int row) { return (uint16_t (*)[CHUNK])(s.weights[row] + page * PAGE); };
    int row = 0;
    for (; row + VALUE_ROWS <= num_rows; row += VALUE_ROWS)
      mix_page<VALUE_ROWS>(weights(row), chunk.halves[page], padded, s.sums.data() + row * padded);
    for (; row < num_rows; ++row) mix_page<1>(weights(row), chunk.halves[page], padded, s.sums.data() + row * padded);
  }
}

// Attend from s.queries (num_rows, in the order of their positions) to one head's pages; the result stands in s.sums.
inline void attend(const Pages& pages, int layer, int kv_head, const int32_t* table, int num_rows,
                   AttentionScratch& s) {
  int width = pages.head_dim, padded = pages.padded(), longest = *std::max_element(s.length, s.length + num_rows);
  bool uses_amx = amx::fits_head(width);
  // Tiles are whole: rows without a query are computed too, and not read.
  std::fill(s.sums.begin(), s.sums.end(), 0.0f);
  std::fill_n(s.most, num_rows, -std::numeric_limits<float>::infinity());
  std::fill_n(s.mass, num_rows, 0.0f);
  for (int index = 0; index * CHUNK < longest; ++index) {
    ChunkPages chunk;
    chunk.num_pages = std::min(CHUNK_PAGES, (longest - index * CHUNK + PAGE - 1) / PAGE);
    for (int page = 0; page < chunk.num_pages; ++page)
      chunk.heads[page] = pages.head(layer, table[index * CHUNK_PAGES + page], kv_head);
    chunk.take(pages, 0, PAGE * width, s);
    score_chunk(chunk, num_rows, width, uses_amx, s);
    for (int page = 0; pages.is_int8 && page < chunk.num_pages; ++page) {
      Floats scales = load<Floats>(chunk.heads[page] + pages.scales_at());
      for (int row = 0; row < num_rows; ++row) {
        float* scores = s.scores[row] + page * PAGE;
        store(scores, load<Floats>(scores) * scales);
      }
    }
    for (int row = 0; row < num_rows; ++row) weigh(s, row, index, padded);
    for (int page = 0; pages.is_int8 && page < chunk.num_pages; ++page) {
      Floats scales = load<Floats>(chunk.heads[page] + pages.scales_at() + PAGE * sizeof(float));
      for (int row = 0; row < num_rows; ++row) {
        uint16_t* weights = s.weights[row] + page * PAGE;
        store(weights, to_bfloat16(from_bfloat16(load<Halves>(weights)) * scales));
      }
    }
    chunk.take(pages, pages.values_at(), PAGE * padded, s);
    mix_chunk(chunk, num_rows, padded, uses_amx, s);
  }
  for (int row = 0; row < num_rows; ++row)
    for (int e = 0; e < padded; ++e) s.sums[row * padded + e] /= s.mass[row];
}

}  // namespace puna
