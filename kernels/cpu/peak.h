// Measures the processor's peak at one SIMD level: independent chains of multiply-adds in registers, without memory.
//
// Included by recurrence.h, once for each level.
#pragma once

#include "simd.h"

namespace rnn {
namespace RNN_LEVEL {

// Hides a vector's value from the compiler, so that it can neither drop nor share a product. Costs nothing if the vector fits a
// register.
#if defined(RNN_X86) && (RNN_SIMD_BYTES == 16 || (RNN_SIMD_BYTES == 32 && defined(__AVX__)) || defined(__AVX512F__))
#define RNN_FORGET(v) asm volatile("" : "+v"(v))
#elif defined(__aarch64__) && RNN_SIMD_BYTES == 16
#define RNN_FORGET(v) asm volatile("" : "+w"(v))
#else
#define RNN_FORGET(v) asm volatile("" : "+m"(v))
#endif

// Runs `rounds` rounds of as many chains as the highest tile has accumulators. Two units that start one multiply-add a cycle and
// take 4 or 5 cycles for it need 8 to 10 chains. On a level without fused multiply-adds, a round is a product and an addition.
//
// Every lane of a chain counts its multiply-adds. Returns their total, which is exact for up to 2^24 rounds.
template <class Real>
double multiply_adds(int64_t rounds) {
  constexpr int CHAINS = 2 * RNN_MAX_ROWS;
  Vec<Real> chain[CHAINS] = {}, one = Vec<Real>{} + 1, other = one;
  RNN_FORGET(other);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 32
    for (int c = 0; c < CHAINS; ++c) {
      RNN_FORGET(one);
      chain[c] += one * other;
    }
  }
  double count = 0;
  for (int c = 0; c < CHAINS; ++c)
    for (int lane = 0; lane < lanes<Real>(); ++lane) count += chain[c][lane];
  return count;
}

}  // namespace RNN_LEVEL
}  // namespace rnn
