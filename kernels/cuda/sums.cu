// sums: rows of the gradient before tanh added up by token, dWxh[v] = Σ da[i] over the i with tokens[i] = v, or all of them,
// dbh = Σ da[i]. In a fixed order and without atomics: chunks of rows first, each in order, then the chunks in order.
//
// da (N, H) with N = T·B. rnn_sum_rows: launch (V, chunks, H / 128 rounded up) × 128; a thread owns a column, a block the rows
// blockIdx.y·rows ... of one token. partials (chunks, V, H), which rnn_sum_chunks adds up over the chunks (or which is the
// result itself where there is one chunk). tokens (N), or null for all rows, with V = 1.
//
// A warp looks at 32 tokens at a time and reads only the rows that are its token's, 4 of them on their way at once.
#include "primitives.cuh"

// Macros: REAL.
extern "C" __global__ void __launch_bounds__(128) rnn_sum_rows(const int* tokens, const REAL* da, REAL* partials, long long N, int H,
                                                           int rows) {
  const int token = blockIdx.x, lane = threadIdx.x % 32;
  const int j = blockIdx.z * 128 + threadIdx.x;
  const long long begin = static_cast<long long>(blockIdx.y) * rows, end = begin + rows < N ? begin + rows : N;
  REAL sum = 0;
  for (long long first = begin; first < end; first += 32) {
    const bool inside = first + lane < end;
    unsigned found = ballot(inside && (tokens ? tokens[first + lane] == token : true));
    while (found) {
      REAL values[4] = {};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (found && j < H) values[i] = da[(first + __ffs(found) - 1) * H + j];
        found &= found - 1;  // 0 stays 0
      }
#pragma unroll
      for (int i = 0; i < 4; i++) sum += values[i];
    }
  }
  if (j < H) partials[(static_cast<long long>(blockIdx.y) * gridDim.x + token) * H + j] = sum;
}

// size = V·H; launch (size / 256 rounded up) × 256.
extern "C" __global__ void __launch_bounds__(256) rnn_sum_chunks(const REAL* partials, REAL* sums, long long size, int chunks) {
  const long long i = static_cast<long long>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= size) return;
  REAL sum = 0;
  for (int c = 0; c < chunks; c++) sum += partials[c * size + i];
  sums[i] = sum;
}
