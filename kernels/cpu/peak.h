// The most multiply-adds that a processor can do at one SIMD level: independent chains of them in registers, no memory.
//
// Included by recurrence.h, once for each level.
#pragma once

#include "simd.h"

namespace rnn {
namespace RNN_LEVEL {

// Makes the compiler forget what a vector holds, so that it can neither leave out nor share a product. It costs nothing where
// the vector fits a register.
#if defined(RNN_X86) && (RNN_SIMD_BYTES == 16 || (RNN_SIMD_BYTES == 32 && defined(__AVX__)) || defined(__AVX512F__))
#define RNN_FORGET(v) asm volatile("" : "+v"(v))
#elif defined(__aarch64__) && RNN_SIMD_BYTES == 16
#define RNN_FORGET(v) asm volatile("" : "+w"(v))
#else
#define RNN_FORGET(v) asm volatile("" : "+m"(v))
#endif

// `rounds` rounds of as many chains as the highest tile has accumulators: two units, each of which starts one every cycle and
// ends it 4 or 5 cycles later, need 8 to 10. Where there are no fused ones a chain is of additions, each of a product of its own.
//
// Every lane of a chain counts its multiply-adds. Returns how many they were together, exact for up to 2^24 rounds.
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
