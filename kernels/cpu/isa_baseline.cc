// The instructions that every processor of an architecture has: SSE2 on x86-64 (16 registers), NEON on Arm.
#define RNN_LEVEL baseline
#define RNN_SIMD_BYTES 16
#define RNN_MAX_ROWS 6
#include "recurrence.h"

namespace rnn {
extern const Level baseline_level = {"baseline", baseline::kernels<float>(), baseline::kernels<double>()};
}  // namespace rnn
