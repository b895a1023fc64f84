// The kernels as a program: calls come on standard input, results go to standard output, so that an emulator can run it for
// another processor. emulated_kernels.py speaks to it. Each part of a message is its length in bytes and then the bytes.

#include <cstdio>
#include <cstdlib>

#include "llama.cpp"

namespace {

template <class T> std::vector<T> take() {
  int64_t size;
  if (fread(&size, sizeof(size), 1, stdin) != 1) exit(0);
  std::vector<T> values(size / sizeof(T));
  if (size && fread(values.data(), size, 1, stdin) != 1) exit(1);
  return values;
}

template <class T> void give(const std::vector<T>& values) {
  int64_t size = values.size() * sizeof(T);
  fwrite(&size, sizeof(size), 1, stdout);
  fwrite(values.data(), size, 1, stdout);
  fflush(stdout);
}

struct Model {
  PunaNetwork net;
  std::vector<PunaLayer> layers;
  std::vector<std::vector<float>> vectors;
};

// What was sent is named by its place in these.
std::vector<Matrix> matrices;
std::vector<std::unique_ptr<Model>> models;
std::vector<Pages> caches;

// Sizes; words or bfloat16 numbers; scales.
void keep_matrix(void* machine) {
  auto sizes = take<int32_t>();
  auto words = new std::vector<uint8_t>(take<uint8_t>());
  auto scales = take<uint8_t>();
  Matrix matrix{words->data(), sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
  if (matrix.kind != BFLOAT16) {
    auto packed = new std::vector<uint8_t>(puna_packed_bytes(&matrix) + AHEAD);
    puna_pack(machine, &matrix, words->data(), sizes[5], scales.data(), sizes[6], packed->data());
    matrix.data = packed->data();
  }
  matrices.push_back(matrix);
}

// The sizes of PunaNetwork; matrices: embedding, head, then seven a layer; norm, frequencies, [eps], then two norms a layer.
void keep_model() {
  auto sizes = take<int32_t>(), which = take<int32_t>();
  auto model = std::make_unique<Model>();
  for (int i = 0; i < 3 + 2 * sizes[0]; ++i) model->vectors.push_back(take<float>());
  auto& vectors = model->vectors;
  for (int i = 0; i < sizes[0]; ++i) {
    auto matrix = [&](int place) { return matrices[which[2 + 7 * i + place]]; };
    model->layers.push_back({matrix(0), matrix(1), matrix(2), matrix(3), matrix(4), matrix(5), matrix(6),
                             vectors[3 + 2 * i].data(), vectors[4 + 2 * i].data()});
  }
  model->net = {model->layers.data(), matrices[which[0]], matrices[which[1]], vectors[0].data(), vectors[1].data(),
                vectors[2][0], sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]};
  models.push_back(std::move(model));
}

void keep_pages() {
  auto sizes = take<int64_t>();
  caches.push_back({(uint8_t*)calloc(sizes[0], 1), sizes[1], sizes[2], sizes[3], int32_t(sizes[4]), int32_t(sizes[5])});
}

// Starts and lengths, then each span's table.
struct Spans {
  std::vector<std::vector<int32_t>> tables;
  std::vector<PunaSpan> spans;

  Spans() {
    auto sizes = take<int32_t>();
    for (size_t i = 0; i < sizes.size() / 2; ++i) tables.push_back(take<int32_t>());
    for (size_t i = 0; i < tables.size(); ++i) spans.push_back({tables[i].data(), sizes[2 * i], sizes[2 * i + 1]});
  }
};

void attend(void* machine) {
  auto which = take<int32_t>();
  Spans taken;
  auto q = take<float>(), k = take<float>(), v = take<float>();
  std::vector<float> out(q.size());
  puna_attend(machine, &models[which[0]]->net, &caches[which[1]], taken.spans.data(), taken.spans.size(), q.data(),
              k.data(), v.data(), out.data());
  give(out);
}

void forward(void* machine) {
  auto which = take<int32_t>();
  Spans taken;
  auto tokens = take<int32_t>(), rows = take<int32_t>();
  const PunaNetwork& net = models[which[0]]->net;
  std::vector<float> hidden(rows.size() * net.dim);
  puna_forward(machine, &net, &caches[which[1]], tokens.data(), taken.spans.data(), taken.spans.size(), rows.data(),
               rows.size(), hidden.data());
  give(hidden);
}

void multiply(void* machine) {
  auto which = take<int32_t>();
  auto x = take<float>();
  const Matrix& matrix = matrices[which[0]];
  std::vector<float> out(x.size() / matrix.cols * matrix.rows);
  puna_linear(machine, &matrix, x.data(), x.size() / matrix.cols, out.data());
  give(out);
}

}  // namespace

int main(int, char** arguments) {
  void* machine = puna_open(atoi(arguments[1]));
  std::string name = puna_instructions();
  give(std::vector<char>(name.begin(), name.end()));
  for (;;) switch (take<char>()[0]) {
      case 'm': keep_matrix(machine); break;
      case 'n': keep_model(); break;
      case 'p': keep_pages(); break;
      case 'l': multiply(machine); break;
      case 'a': attend(machine); break;
      case 'f': forward(machine); break;
      default: return 1;
    }
}
