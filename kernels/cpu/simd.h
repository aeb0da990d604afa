// Vectors of RNN_SIMD_BYTES bytes, written with the compiler's vector extension (GCC and Clang, any processor).
//
// Only isa_*.cc include this, each with a namespace RNN_LEVEL of its own, so that no two levels share a function.
#pragma once

#include <stdint.h>

#define RNN_INLINE inline __attribute__((always_inline))

namespace rnn {
namespace RNN_LEVEL {

template <class Real>
struct Simd;

template <>
struct Simd<float> {
  typedef int32_t Lane;
  typedef float Vec __attribute__((vector_size(RNN_SIMD_BYTES)));
  typedef int32_t Int __attribute__((vector_size(RNN_SIMD_BYTES)));
};

template <>
struct Simd<double> {
  typedef int64_t Lane;
  typedef double Vec __attribute__((vector_size(RNN_SIMD_BYTES)));
  typedef int64_t Int __attribute__((vector_size(RNN_SIMD_BYTES)));
};

template <class Real>
using Vec = typename Simd<Real>::Vec;
template <class Real>
using Int = typename Simd<Real>::Int;

template <class Real>
constexpr int lanes() {
  return RNN_SIMD_BYTES / sizeof(Real);
}

template <class Real>
RNN_INLINE Vec<Real> load(const Real* p) {
  Vec<Real> v;
  __builtin_memcpy(&v, p, sizeof v);  // needs no alignment
  return v;
}

template <class Real>
RNN_INLINE void store(Real* p, Vec<Real> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// The first n lanes only. The other lanes read as 0 and are not written.
template <class Real>
RNN_INLINE Vec<Real> load(const Real* p, int64_t n) {
  Vec<Real> v = {};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}

template <class Real>
RNN_INLINE void store(Real* p, Vec<Real> v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}

// Lane i of the result: if i has the bit STEP, lane i - STEP (LOW) or i of b; else lane i (LOW) or i + STEP of a.
template <class Real, int STEP, bool LOW>
RNN_INLINE Vec<Real> exchange(Vec<Real> a, Vec<Real> b) {
  constexpr int LANES = lanes<Real>();
#ifdef __clang__
  Vec<Real> v;
  for (int i = 0; i < LANES; ++i) v[i] = i & STEP ? b[LOW ? i - STEP : i] : a[LOW ? i : i + STEP];
  return v;
#else
  Int<Real> from = {};
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i) from[i] = i & STEP ? LANES + (LOW ? i - STEP : i) : LOW ? i : i + STEP;
  return __builtin_shuffle(a, b, from);
#endif
}

// Transposes as many vectors as a vector has lanes: squares of STEP × STEP first, and then those twice as large.
template <class Real, int STEP = 1>
RNN_INLINE void transpose(Vec<Real>* rows) {
  constexpr int LANES = lanes<Real>();
  if constexpr (STEP < LANES) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {
      if (i & STEP) continue;
      const Vec<Real> a = rows[i], b = rows[i + STEP];
      rows[i] = exchange<Real, STEP, true>(a, b);
      rows[i + STEP] = exchange<Real, STEP, false>(a, b);
    }
    transpose<Real, 2 * STEP>(rows);
  }
}

// The bits of a value as another type.
template <class To, class From>
RNN_INLINE To bits(From v) {
  static_assert(sizeof(To) == sizeof(From), "a bit pattern keeps its size");
  To to;
  __builtin_memcpy(&to, &v, sizeof to);
  return to;
}

}  // namespace RNN_LEVEL
}  // namespace rnn
