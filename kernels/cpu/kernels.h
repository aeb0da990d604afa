// What one SIMD level offers to the dispatcher: a table of functions, each of which does one thread's share.
//
// isa_*.cc compile recurrence.h once per level and fill these tables. This header has no code: an inline function
// that several levels shared could be kept by the linker in its AVX-512 version and then run where there is none.
#ifndef RNN_KERNELS_H_
#define RNN_KERNELS_H_

#include <stdint.h>

#include "rnn_cpu.h"

namespace rnn {

// Whh (or its transpose) as the micro-kernel reads it: panels of `Kernels::panel` columns, in each the rows k one
// below the other. Packed panels are contiguous; unpacked ones are the matrix itself, seen with its own row stride.
// The last columns, if they fill no whole panel, are always packed and padded with zeros.
template <class Real>
struct Weights {
  const Real* panels;    // first whole panel
  int64_t panel_stride;  // from a panel to the next
  int64_t row_stride;    // from k to k + 1 within a whole panel
  const Real* tail;      // the padded panel, its rows `Kernels::panel` apart; unused when H is a multiple of panel
};

template <class Real>
struct Kernels {
  int64_t panel;  // columns that a packed panel holds

  // Packs panels [begin, end) of the H × H matrix W, or of its transpose, to `packed` (panel p at p·H·panel).
  void (*pack)(const Real* W, int64_t H, bool transpose, int64_t begin, int64_t end, Real* packed);

  // Runs batch rows [begin, end) through all T steps.
  void (*forward)(const rnn_cpu_forward_args& args, const Weights<Real>& Whh, int64_t begin, int64_t end);
  void (*backward)(const rnn_cpu_backward_args& args, const Weights<Real>& WhhT, int64_t begin, int64_t end);

  // Sums da to columns [begin, end) of dbh and, with tokens, of dWxh, each in the order of t, then b.
  void (*sum)(const rnn_cpu_backward_args& args, int64_t begin, int64_t end);

  void (*tanh)(int64_t n, const Real* x, Real* y);
};

struct Level {
  const char* name;
  Kernels<float> float32;
  Kernels<double> float64;
};

extern const Level baseline_level;
#ifdef RNN_X86
extern const Level avx2_level;
extern const Level avx512_level;
#endif

}  // namespace rnn
#endif  // RNN_KERNELS_H_
