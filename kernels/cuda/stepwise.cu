// stepwise: one launch a step after cuBLAS has multiplied the state with the matrix. Any shape, any GPU, float32 and float64.
//
// Thread i computes element i of (B, H). sums (B, H): the product of state n with the matrix, or null for the start. Stores state
// n + 1, or state 0 for the start. Limited by memory (some 5 values an element are read and written) and by the launch.
#include "passes.cuh"

// Macros: NAME, PASS, REAL.
extern "C" __global__ void __launch_bounds__(256) NAME(PASS pass, int n, const REAL* sums) {
  const long long i = static_cast<long long>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= static_cast<long long>(pass.B) * pass.H) return;
  const int b = static_cast<int>(i / pass.H), j = static_cast<int>(i % pass.H);
  const auto column = pass.column(j);
  const long long line = pass.line(sums ? static_cast<long long>(n) * pass.B : -static_cast<long long>(pass.B), b);
  if (sums) {
    int token = 0;
    PASS::Term term = {};
    load_when(pass.token(line) != nullptr, pass.token(line), token);
    pass.read(true, pass.place(column, token, line), term);
    pass.store(true, column, line, pass.finish(sums[i], pass.addend(column, term)));
  } else {
    pass.store(true, column, line, pass.start(b, j));
  }
}
