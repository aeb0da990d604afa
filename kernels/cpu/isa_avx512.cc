// AVX-512F: 32 registers of 16 floats; 24 accumulators, 2 vectors of Whh, 1 value of the state.
#define RNN_LEVEL avx512
#define RNN_SIMD_BYTES 64
#define RNN_MAX_ROWS 12
#include "recurrence.h"

namespace rnn {
extern const Level avx512_level = {"avx512", avx512::kernels<float>(), avx512::kernels<double>()};
}  // namespace rnn
