// sums: adds up rows of da, by token, dWxh[v] = Σ da[i] over all i with tokens[i] = v, or all rows, dbh = Σ da[i]. The order is
// fixed and there are no atomics: first the rows of each chunk in order, then the chunks in order.
//
// da (N, H) with N = T·B. tokens (N), or null for all rows, with V = 1. rnn_sum_rows: launch (V, chunks, H / 128 rounded up) ×
// 128; a thread has one column, a block the rows blockIdx.y·rows ... of one token. It writes partials (chunks, V, H), and
// rnn_sum_chunks adds the chunks. With one chunk, partials is the result.
//
// A warp looks at 32 tokens at a time and reads only the rows of its token, 4 rows at once.
#include "primitives.cuh"

// Macros: REAL.
extern "C" __global__ void __launch_bounds__(128)
    rnn_sum_rows(const int* tokens, const REAL* da, REAL* partials, long long N, int H, int rows) {
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
