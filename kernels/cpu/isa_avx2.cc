// AVX2 and FMA: 16 registers of 8 floats; 12 accumulators, 2 vectors of Whh, 1 value of the state.
#define RNN_LEVEL avx2
#define RNN_SIMD_BYTES 32
#define RNN_MAX_ROWS 6
#include "recurrence.h"

namespace rnn {
extern const Level avx2_level = {"avx2", avx2::kernels<float>(), avx2::kernels<double>()};
}  // namespace rnn
