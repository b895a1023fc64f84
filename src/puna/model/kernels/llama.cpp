// A Llama's whole step in one call: tokens and page tables -> hidden states, of which puna_linear makes logits. The readable
// twin is model/llama.py. A plain C interface for ctypes (native.py declares the same structures).
//
// Activations and the residual are float32; matrices see them rounded (matmul.h). Holds no weights: the caller keeps
// them, and the pages, alive.

#include <initializer_list>
#include <memory>

#include "attention.h"
#include "lora.h"
#include "matmul.h"
#include "pack.h"
#include "team.h"

using namespace puna;

extern "C" {

struct PunaLayer {
  Matrix q, k, v, o, gate, up, down;
  const float *attention_norm, *mlp_norm;
};

struct PunaNetwork {
  const PunaLayer* layers;
  Matrix embedding, head;
  const float *norm, *frequencies;  // frequencies: [head_dim / 2], radians a position
  float norm_eps;
  int32_t num_layers, dim, hidden_dim, num_heads, num_kv_heads, head_dim, vocab_size;
};

// Tokens of one sequence: they stand at positions `start`, `start + 1`, ...; its pages are table[0], table[1], ...
struct PunaSpan {
  const int32_t* table;
  const Lora* adapter;  // [num_layers][MATRICES], or null
  int32_t start, num_tokens;
};
}

namespace {

// A layer's matrices in the order of PunaLayer: its first ones with each input, and how many there are.
enum { QUERY = 0, OUT = 3, GATE = 4, DOWN = 6, MATRICES = 7 };
constexpr int NONE = -1;

// Products of a block with a step's tokens below which one thread is as fast as many.
constexpr int64_t SMALL = 4'000'000;

// Part of a span that one thread attends for one key/value head.
struct Task {
  int span, row, first, count;  // row: of the span's first token in the step; first: token within the span
};

struct Thread {
  explicit Thread(const Pages& pages) : attention(pages) {}
  Scratch scratch;
  AttentionScratch attention;
};

class Machine {
 public:
  explicit Machine(int num_threads) : team_(num_threads) {}

  Team& team() { return team_; }

  void forward(const PunaNetwork& net, const Pages& pages, const int32_t* tokens, const PunaSpan* spans, int num_spans,
               const int32_t* rows, int num_rows, float* hidden);
  void linear(const Matrix& matrix, const float* x, int num_tokens, float* to);
  void attend_all(const PunaNetwork& net, const Pages& pages, const PunaSpan* spans, int num_spans, const float* q,
                  const float* k, const float* v, float* to);

 private:
  Team team_;
  std::vector<std::unique_ptr<Thread>> threads_;
  Activations input_;
  Adapted adapted_;
  std::vector<float> x_, q_, k_, v_, mixed_, gated_;
  std::vector<Task> tasks_;
  int head_dim_ = 0;

  void prepare(const Pages& pages) {
    if (!threads_.empty() && head_dim_ == pages.head_dim) return;
    head_dim_ = pages.head_dim;
    threads_.clear();
    for (int i = 0; i < team_.size(); ++i) threads_.push_back(std::make_unique<Thread>(pages));
  }

  void begin_amx() const;
  void multiply_all(Thread& own, int lora, std::initializer_list<std::pair<const Matrix*, float*>> products, bool adds);
  void gate(Thread& own, int lora, const PunaLayer& layer);
  void plan(const PunaNetwork& net, const PunaSpan* spans, int num_spans);
  void rotate(const PunaNetwork& net, int position, int token);
  void write(const PunaNetwork& net, const Pages& pages, int layer, const PunaSpan& span, int row, int i);
  void attend_task(const PunaNetwork& net, const Pages& pages, int layer, const PunaSpan* spans, int index,
                   AttentionScratch& s);
};

void normalize(const float* x, const float* weight, int dim, float eps, float* to) {
  Floats squares{};
  int whole = dim / LANES * LANES;
  for (int i = 0; i < whole; i += LANES) squares += load<Floats>(x + i) * load<Floats>(x + i);
  float total = sum(squares);
  for (int i = whole; i < dim; ++i) total += x[i] * x[i];
  float scale = 1.0f / std::sqrt(total / dim + eps);
  for (int i = 0; i < dim; ++i) to[i] = x[i] * scale * weight[i];
}

int64_t block_size(const PunaNetwork& net) {
  int64_t attention = int64_t(2) * net.dim * net.head_dim * (net.num_heads + net.num_kv_heads);
  return attention + int64_t(3) * net.dim * net.hidden_dim;
}

// Every thread calls these; `share` deals the work out and waits for its end.

void Machine::begin_amx() const {
  if (input_.is_tiled) amx::begin_halves();
  else if (input_.group && amx::fits(input_.group)) amx::begin(input_.group);
}

// Store or add a panel's sums for some tokens.
void put(const Panel& panel, const Floats* sums, int first, int count, float* to, bool adds) {
  int width = panel.matrix->rows, begin = panel.index * PANEL, num_columns = std::min(PANEL, width - begin);
  for (int t = 0; t < count; ++t, sums += 2) {
    float* row = to + size_t(first + t) * width + begin;
    const float* from = (const float*)sums;
    for (int i = 0; i < num_columns; ++i) row[i] = (adds ? row[i] : 0.0f) + from[i];
  }
}

// input_ x each matrix^T, stored or added. `lora`: the place of the first matrix in an adapter, or NONE.
void Machine::multiply_all(Thread& own, int lora, std::initializer_list<std::pair<const Matrix*, float*>> products,
                           bool adds) {
  begin_amx();
  int total = 0, size = input_.bundle();
  for (auto& [matrix, to] : products) total += matrix->panels();
  int num_bundles = (total + size - 1) / size;
  team_.share(num_bundles, [&](int bundle) {
    Panel panels[BUNDLE];
    int slots[BUNDLE], num_panels = std::min(size, total - bundle * size);
    for (int p = 0; p < num_panels; ++p) {
      int panel = bundle * size + p, slot = 0;
      for (; panel >= products.begin()[slot].first->panels(); ++slot) panel -= products.begin()[slot].first->panels();
      panels[p] = {products.begin()[slot].first, panel}, slots[p] = slot;
    }
    for (int first = 0; first < input_.tokens; first += BLOCK) {
      int count = std::min(BLOCK, input_.tokens - first);
      multiply_panels(panels, num_panels, input_, first, count, own.scratch);
      for (int p = 0; p < num_panels; ++p) {
        Floats* sums = own.scratch.sums + 2 * p * count;
        if (lora != NONE) adapted_.add(first, count, lora, slots[p], panels[p].index, sums);
        put(panels[p], sums, first, count, products.begin()[slots[p]].second, adds);
      }
    }
  }, team_.grain(num_bundles));
}

// gated_ = silu(input_ x gate^T) * (input_ x up^T).
void Machine::gate(Thread& own, int lora, const PunaLayer& layer) {
  begin_amx();
  // As many panels of `gate` as of `up`: the sums of both are needed together.
  int size = std::max(1, input_.bundle() / 2), num_bundles = (layer.gate.panels() + size - 1) / size;
  team_.share(num_bundles, [&](int bundle) {
    Panel panels[BUNDLE];
    int begin = bundle * size, num_pairs = std::min(size, layer.gate.panels() - begin), width = layer.gate.rows;
    for (int p = 0; p < num_pairs; ++p)
      panels[p] = {&layer.gate, begin + p}, panels[num_pairs + p] = {&layer.up, begin + p};
    for (int first = 0; first < input_.tokens; first += BLOCK) {
      int count = std::min(BLOCK, input_.tokens - first);
      multiply_panels(panels, 2 * num_pairs, input_, first, count, own.scratch);
      for (int p = 0; p < num_pairs; ++p) {
        Floats *gates = own.scratch.sums + 2 * p * count, *ups = gates + 2 * num_pairs * count;
        adapted_.add(first, count, lora, 0, begin + p, gates);
        adapted_.add(first, count, lora, 1, begin + p, ups);
        for (int i = 0; i < 2 * count; ++i) gates[i] = gates[i] / (1.0f + exp(-gates[i])) * ups[i];
        put(panels[p], gates, first, count, gated_.data(), false);
      }
    }
  }, team_.grain(num_bundles));
}

void Machine::plan(const PunaNetwork& net, const PunaSpan* spans, int num_spans) {
  int shared = net.num_heads / net.num_kv_heads, step = std::max(1, QUERY_ROWS / shared);
  tasks_.clear();
  int row = 0;
  for (int span = 0; span < num_spans; row += spans[span++].num_tokens)
    for (int first = 0; first < spans[span].num_tokens; first += step)
      tasks_.push_back({span, row, first, std::min(step, spans[span].num_tokens - first)});
  auto cost = [&](const Task& task) { return int64_t(task.count) * (spans[task.span].start + task.first + task.count); };
  std::sort(tasks_.begin(), tasks_.end(), [&](const Task& a, const Task& b) { return cost(a) > cost(b); });
}

// Turn the pairs (e, e + E/2) of a token's queries and keys by its position's angles.
void Machine::rotate(const PunaNetwork& net, int position, int token) {
  int width = net.head_dim, half = width / 2;
  float cosines[MAX_HEAD / 2], sines[MAX_HEAD / 2];
  for (int e = 0; e < half; ++e) {
    float angle = float(position) * net.frequencies[e];
    cosines[e] = std::cos(angle), sines[e] = std::sin(angle);
  }
  auto turn = [&](float* heads, int count) {
    for (float* x = heads; x < heads + count * width; x += width)
      for (int e = 0; e < half; ++e) {
        float a = x[e], b = x[e + half];
        x[e] = a * cosines[e] - b * sines[e];
        x[e + half] = b * cosines[e] + a * sines[e];
      }
  };
  turn(q_.data() + size_t(token) * net.num_heads * width, net.num_heads);
  turn(k_.data() + size_t(token) * net.num_kv_heads * width, net.num_kv_heads);
}

void Machine::write(const PunaNetwork& net, const Pages& pages, int layer, const PunaSpan& span, int row, int i) {
  int position = span.start + i, page = span.table[position / PAGE];
  size_t at = size_t(row + i) * net.num_kv_heads * net.head_dim;
  for (int head = 0; head < net.num_kv_heads; ++head)
    write_position(pages, pages.head(layer, page, head), position % PAGE, k_.data() + at + head * net.head_dim,
                   v_.data() + at + head * net.head_dim);
}

void Machine::attend_task(const PunaNetwork& net, const Pages& pages, int layer, const PunaSpan* spans, int index,
                          AttentionScratch& s) {
  const Task& task = tasks_[index / net.num_kv_heads];
  const PunaSpan& span = spans[task.span];
  int kv_head = index % net.num_kv_heads, shared = net.num_heads / net.num_kv_heads, width = net.head_dim;
  float scale = 1.0f / std::sqrt(float(width));
  int row = 0;
  auto at = [&](int i, int g) {
    return (size_t(task.row + task.first + i) * net.num_heads + kv_head * shared + g) * width;
  };
  for (int i = 0; i < task.count; ++i)
    for (int g = 0; g < shared; ++g, ++row) {
      for (int e = 0; e < width; ++e) s.queries[row * width + e] = to_bfloat16(q_[at(i, g) + e] * scale);
      s.length[row] = span.start + task.first + i + 1;
    }
  attend(pages, layer, kv_head, span.table, row, s);
  row = 0;
  for (int i = 0; i < task.count; ++i)
    for (int g = 0; g < shared; ++g, ++row)
      std::copy_n(s.sums.data() + row * pages.padded(), width, mixed_.data() + at(i, g));
}

void Machine::forward(const PunaNetwork& net, const Pages& pages, const int32_t* tokens, const PunaSpan* spans,
                      int num_spans, const int32_t* rows, int num_rows, float* hidden) {
  std::vector<const PunaSpan*> owner;
  std::vector<int> row_of;
  for (int span = 0, row = 0; span < num_spans; row += spans[span++].num_tokens)
    for (int i = 0; i < spans[span].num_tokens; ++i) owner.push_back(spans + span), row_of.push_back(row);
  adapted_.adapters.clear();
  for (const PunaSpan* span : owner) adapted_.adapters.push_back(span->adapter);
  adapted_.begin(net.num_layers * MATRICES);
  int T = int(owner.size()), dim = net.dim, q_dim = net.num_heads * net.head_dim,
      kv_dim = net.num_kv_heads * net.head_dim;
  x_.resize(size_t(T) * dim), q_.resize(size_t(T) * q_dim), k_.resize(size_t(T) * kv_dim);
  v_.resize(size_t(T) * kv_dim), mixed_.resize(size_t(T) * q_dim), gated_.resize(size_t(T) * net.hidden_dim);
  plan(net, spans, num_spans);
  prepare(pages);

  team_.run([&](int rank) {
    Thread& own = *threads_[rank];
    std::vector<float> normed(dim);
    // One thread shapes the input, all fill it.
    auto reshape = [&](const Matrix& matrix) {
      if (rank == 0) input_.shape(matrix, T), adapted_.shape(matrix.cols);
      team_.barrier();
    };
    auto set = [&](int t, const float* x) { input_.set(t, x), adapted_.set(t, x); };
    auto reduce = [&](int lora, int count) {
      if (int tasks = adapted_.tasks(count))
        team_.share(tasks, [&](int task) { adapted_.reduce(task, lora, count); }, team_.grain(tasks));
    };
    auto norm = [&](const float* weight) {
      team_.share(T, [&](int t) {
        normalize(x_.data() + size_t(t) * dim, weight, dim, net.norm_eps, normed.data());
        set(t, normed.data());
      });
    };
    auto take = [&](const std::vector<float>& from, int width) {
      team_.share(T, [&](int t) { set(t, from.data() + size_t(t) * width); });
    };
    team_.share(T, [&](int t) { read_row(net.embedding, tokens[t], x_.data() + size_t(t) * dim); });
    for (int index = 0; index < net.num_layers; ++index) {
      const PunaLayer& layer = net.layers[index];
      int loras = index * MATRICES;
      reshape(layer.q);
      norm(layer.attention_norm);
      reduce(loras + QUERY, 3);
      multiply_all(own, loras + QUERY, {{&layer.q, q_.data()}, {&layer.k, k_.data()}, {&layer.v, v_.data()}}, false);
      team_.share(T, [&](int t) {
        int i = t - row_of[t];
        rotate(net, owner[t]->start + i, t);
        write(net, pages, index, *owner[t], row_of[t], i);
      });
      if (amx::fits_head(net.head_dim)) amx::begin_attention();
      team_.share(int(tasks_.size()) * net.num_kv_heads,
                  [&](int task) { attend_task(net, pages, index, spans, task, own.attention); });
      reshape(layer.o);
      take(mixed_, q_dim);
      reduce(loras + OUT, 1);
      multiply_all(own, loras + OUT, {{&layer.o, x_.data()}}, true);
      reshape(layer.gate);
      norm(layer.mlp_norm);
      reduce(loras + GATE, 2);
      gate(own, loras + GATE, layer);
      reshape(layer.down);
      take(gated_, net.hidden_dim);
      reduce(loras + DOWN, 1);
      multiply_all(own, loras + DOWN, {{&layer.down, x_.data()}}, true);
    }
    team_.share(num_rows, [&](int row) {
      normalize(x_.data() + size_t(rows[row]) * dim, net.norm, dim, net.norm_eps, hidden + size_t(row) * dim);
    });
    amx::end();
  }, T * block_size(net) < SMALL);
}

void Machine::linear(const Matrix& matrix, const float* x, int num_tokens, float* to) {
  input_.shape(matrix, num_tokens);
  if (threads_.empty()) prepare(Pages{nullptr, 0, 0, 0, 16, 0});
  team_.run([&](int rank) {
    team_.share(num_tokens, [&](int t) { input_.set(t, x + size_t(t) * matrix.cols); });
    multiply_all(*threads_[rank], NONE, {{&matrix, to}}, false);
    amx::end();
  }, int64_t(num_tokens) * matrix.rows * matrix.cols < SMALL);
}

// Rotate, write to the pages of layer 0 and attend: for the test against the twin.
void Machine::attend_all(const PunaNetwork& net, const Pages& pages, const PunaSpan* spans, int num_spans,
                         const float* q, const float* k, const float* v, float* to) {
  int T = 0;
  for (int span = 0; span < num_spans; ++span) T += spans[span].num_tokens;
  size_t q_size = size_t(T) * net.num_heads * net.head_dim, kv_size = size_t(T) * net.num_kv_heads * net.head_dim;
  q_.assign(q, q + q_size), k_.assign(k, k + kv_size), v_.assign(v, v + kv_size), mixed_.resize(q_size);
  plan(net, spans, num_spans);
  prepare(pages);
  for (int span = 0, row = 0; span < num_spans; row += spans[span++].num_tokens)
    for (int i = 0; i < spans[span].num_tokens; ++i) {
      rotate(net, spans[span].start + i, row + i);
      write(net, pages, 0, spans[span], row, i);
    }
  team_.run([&](int rank) {
    if (amx::fits_head(net.head_dim)) amx::begin_attention();
    team_.share(int(tasks_.size()) * net.num_kv_heads,
                [&](int task) { attend_task(net, pages, 0, spans, task, threads_[rank]->attention); });
  });
  std::copy(mixed_.begin(), mixed_.begin() + q_size, to);
}

}  // namespace

// All else is hidden: two builds in one process must not take one another's functions.
#pragma GCC visibility push(default)
extern "C" {

void* puna_open(int32_t num_threads) { return new Machine(num_threads); }

void puna_close(void* machine) { delete (Machine*)machine; }

// The instructions in use, for people.
const char* puna_instructions() {
#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
  return amx::fits(64) ? "AMX, AVX-512 (VNNI, BF16)" : "AVX-512 (VNNI, BF16)";
#elif defined(__AVX512VNNI__)
  return "AVX-512 (VNNI)";
#elif defined(__AVXVNNI__)
  return "AVX2 (VNNI)";
#elif defined(__AVX2__)
  return "AVX2";
#elif defined(__ARM_FEATURE_DOTPROD)
  return "ARM (dot product)";
#else
  return "portable";
#endif
}

// Positions of a page of the KV cache.
int32_t puna_page_len() { return PAGE; }

int64_t puna_packed_bytes(const Matrix* matrix) {
  return int64_t(matrix->panels()) * matrix->groups() * matrix->block_bytes();
}

void puna_pack(void* machine, const Matrix* matrix, const uint8_t* words, int64_t row_bytes, const uint8_t* scales,
               int32_t scale_groups, uint8_t* to) {
  Team& team = ((Machine*)machine)->team();
  size_t panel_bytes = matrix->groups() * matrix->block_bytes();
  team.run([&](int) {
    team.share(matrix->panels(), [&](int panel) {
      pack_panel(*matrix, panel, words, row_bytes, scales, scale_groups, to + panel * panel_bytes);
    });
  });
}

void puna_linear(void* machine, const Matrix* matrix, const float* x, int32_t num_tokens, float* to) {
  ((Machine*)machine)->linear(*matrix, x, num_tokens, to);
}

void puna_attend(void* machine, const PunaNetwork* net, const Pages* pages, const PunaSpan* spans, int32_t num_spans,
                 const float* q, const float* k, const float* v, float* to) {
  ((Machine*)machine)->attend_all(*net, *pages, spans, num_spans, q, k, v, to);
}

void puna_forward(void* machine, const PunaNetwork* net, const Pages* pages, const int32_t* tokens,
                  const PunaSpan* spans, int32_t num_spans, const int32_t* rows, int32_t num_rows, float* hidden) {
  ((Machine*)machine)->forward(*net, *pages, tokens, spans, num_spans, rows, num_rows, hidden);
}
}
#pragma GCC visibility pop
