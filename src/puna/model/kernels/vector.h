// Sixteen lanes of numbers and the few operations that compilers don't find by themselves: dot products of bytes and of
// bfloat16 pairs, exp. One source for AVX-512, AVX2, ARM and any other processor: GCC and clang split wide vectors.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace puna {

constexpr int LANES = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint8_t Bytes __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int8_t SignedBytes __attribute__((vector_size(16)));

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

template <class V> INLINE V load(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof(V));
  return value;
}

template <class V> INLINE void store(void* to, V value) { std::memcpy(to, &value, sizeof(V)); }

INLINE Floats splat(float value) { return value - Floats{}; }
INLINE Ints splat(int32_t value) { return value - Ints{}; }
INLINE Floats to_floats(Ints values) { return __builtin_convertvector(values, Floats); }
INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// The lanes turned so that the one at `by` comes first.
template <int BY> INLINE Floats turned(Floats v) {
#if defined(__clang__)
  constexpr auto at = [](int lane) { return (lane + BY) % LANES; };
  return __builtin_shufflevector(v, v, at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9), at(10),
                                 at(11), at(12), at(13), at(14), at(15));
#else
  constexpr Ints LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return __builtin_shuffle(v, (LANE + BY) % LANES);
#endif
}

INLINE float sum(Floats values) {
  values += turned<8>(values);
  values += turned<4>(values);
  values += turned<2>(values);
  return values[0] + values[1];
}

INLINE int32_t sum_of(Ints values) {
  int32_t total = 0;
  for (int lane = 0; lane < LANES; ++lane) total += values[lane];
  return total;
}

INLINE float largest(Floats values) {
  values = larger(values, turned<8>(values));
  values = larger(values, turned<4>(values));
  values = larger(values, turned<2>(values));
  return values[0] > values[1] ? values[0] : values[1];
}

// bfloat16: the upper half of a float, rounded to the nearest even. A NaN stays one.

INLINE uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return value != value ? 0x7fc0 : uint16_t(rounded);
}

INLINE Halves to_bfloat16(Floats values) {
  Words bits = (Words)values, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector(values != values ? Words{} + 0x7fc0 : rounded, Halves);
}

INLINE void to_bfloat16(const float* x, int count, uint16_t* to) {
  int whole = count / LANES * LANES;
  for (int i = 0; i < whole; i += LANES) store(to + i, to_bfloat16(load<Floats>(x + i)));
  for (int i = whole; i < count; ++i) to[i] = to_bfloat16(x[i]);
}

INLINE float from_bfloat16(uint16_t half) {
  uint32_t bits = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

INLINE Floats from_bfloat16(Halves halves) { return (Floats)(__builtin_convertvector(halves, Words) << 16); }

// Signed bytes -> bfloat16, which holds them exactly; `count` is a multiple of LANES.
INLINE void widen(const int8_t* from, uint16_t* to, int count) {
#if defined(__AVX512F__)
  // GCC 12 takes __builtin_convertvector of bytes lane by lane.
  for (int i = 0; i < count; i += LANES) {
    Words bits = (Words)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load<__m128i>(from + i)));
    store(to + i, __builtin_convertvector(bits >> 16, Halves));
  }
#else
  for (int i = 0; i < count; ++i) {
    float value = from[i];
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    to[i] = uint16_t(bits >> 16);
  }
#endif
}

// Numbers -> bytes and their scale: the largest becomes 127 or -127. Where one is not finite the scale is NaN.

struct Rounding {
  float scale;
  int32_t total;  // of the bytes
};

INLINE Ints round_to_ints(Floats values) {
  constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it leaves no room for fractions.
  return __builtin_convertvector((values + ROUND) - ROUND, Ints);
}

inline Rounding round_to_bytes(const float* x, int count, int8_t* to) {
  Floats most{}, poison{};
  Ints totals{};
  auto for_each = [&](auto&& body) INLINE_LAMBDA {
    int whole = count / LANES * LANES;
    for (int i = 0; i < whole; i += LANES) body(load<Floats>(x + i), i, LANES);
    Floats rest{};
    std::memcpy(&rest, x + whole, (count - whole) * sizeof(float));
    if (whole < count) body(rest, whole, count - whole);
  };
  for_each([&](Floats values, int, int) INLINE_LAMBDA {
    most = larger(larger(values, -values), most);
    poison += values * 0.0f;
  });
  float size = largest(most), inverse = size > 0 ? 127.0f / size : 0.0f;
  for_each([&](Floats values, int i, int width) INLINE_LAMBDA {
    Ints rounded = round_to_ints(values * inverse);
    totals += rounded;
    SignedBytes narrow = __builtin_convertvector(rounded, SignedBytes);
    std::memcpy(to + i, &narrow, width);
  });
  return {size / 127.0f + sum(poison), sum_of(totals)};
}

// In each lane the sum of four products of a weight's byte and an activation's signed byte, `quad` being the same four
// activations for all lanes. Four-bit weights are 0..15. Eight-bit weights are 0..255 (128 too large) where the
// processor multiplies unsigned by signed, else signed: `weight_offset` tells which.

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr bool TAKES_UNSIGNED = true;
#else
constexpr bool TAKES_UNSIGNED = false;
#endif

template <int BITS> constexpr int weight_offset() { return BITS == 4 ? 8 : TAKES_UNSIGNED ? 128 : 0; }

template <int BITS> INLINE Ints dot_quads(Ints total, Bytes weights, int32_t quad) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)total, (__m512i)weights, _mm512_set1_epi32(quad));
#elif defined(__AVX2__)
  __m256i totals[2], halves[2], quads = _mm256_set1_epi32(quad);
  std::memcpy(totals, &total, 64);
  std::memcpy(halves, &weights, 64);
  for (int i = 0; i < 2; ++i) {
#if defined(__AVXVNNI__)
    totals[i] = _mm256_dpbusd_avx_epi32(totals[i], halves[i], quads);
#else
    // maddubs adds pairs in 16 bits: 2 * 128 * 127 still fits.
    __m256i pairs = BITS == 4 ? _mm256_maddubs_epi16(halves[i], quads)
                              : _mm256_maddubs_epi16(_mm256_abs_epi8(halves[i]), _mm256_sign_epi8(quads, halves[i]));
    totals[i] = _mm256_add_epi32(totals[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
  }
  std::memcpy(&total, totals, 64);
  return total;
#elif defined(__ARM_FEATURE_DOTPROD)
  int32x4_t totals[4];
  int8x16_t quarters[4], quads = vreinterpretq_s8_s32(vdupq_n_s32(quad));
  std::memcpy(totals, &total, 64);
  std::memcpy(quarters, &weights, 64);
  for (int i = 0; i < 4; ++i) totals[i] = vdotq_s32(totals[i], quarters[i], quads);
  std::memcpy(&total, totals, 64);
  return total;
#else
  int8_t bytes[64], four[4];
  std::memcpy(bytes, &weights, 64);
  std::memcpy(four, &quad, 4);
  for (int lane = 0; lane < LANES; ++lane)
    for (int i = 0; i < 4; ++i) total[lane] += bytes[4 * lane + i] * four[i];
  return total;
#endif
}

// In each lane the sum of two products of bfloat16 numbers, two to a lane.

INLINE Floats dot_pairs(Floats total, Words a, Words b) {
#if defined(__AVX512BF16__)
  return (Floats)_mm512_dpbf16_ps((__m512)total, (__m512bh)a, (__m512bh)b);
#else
  Words upper = Words{} + 0xffff0000u;
  total += (Floats)(a << 16) * (Floats)(b << 16);
  return total + (Floats)(a & upper) * (Floats)(b & upper);
#endif
}

// exp with an error of about one unit in the last place; 0 below -87.

INLINE Floats exp(Floats x) {
  constexpr float LOG2E = 1.44269504f, LN2_HIGH = 0.693145752f, LN2_LOW = 1.42860677e-6f, ROUND = 12582912.0f;
  Floats bounded = larger(x, splat(-87.0f));
  bounded = bounded > 88.0f ? splat(88.0f) : bounded;
  Floats whole = (bounded * LOG2E + ROUND) - ROUND;
  Floats rest = (bounded - whole * LN2_HIGH) - whole * LN2_LOW;
  Floats poly = splat(1.0f / 720);
  for (float coefficient : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) poly = poly * rest + coefficient;
  Ints exponent = __builtin_convertvector(whole, Ints) << 23;
  Floats result = (Floats)((Ints)poly + exponent);
  return x < -87.0f ? Floats{} : result;
}

}  // namespace puna
