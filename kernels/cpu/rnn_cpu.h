// The C interface of the CPU kernels: one recurrence, forward and backward through time.
//
//     h[t] = f(x[t]·Wxh + h[t-1]·Whh + bh),   h[-1] = h0,   f = tanh or relu
//
// Everything is row-major and C-contiguous, `Real` is float (RNN_FLOAT32) or double (RNN_FLOAT64). T, B, I, H >= 1:
// steps, batch rows, input width (the vocabulary where the input is tokens), hidden units. Buffers must not overlap
// unless a comment says so; none is kept after the call. The caller owns all of them.
//
// The same input gives the same bits, whatever the number of threads and whichever of the SIMD levels with fused multiply-adds
// (avx2, avx512) computes; baseline on x86-64 has none and rounds more often. Calls may run concurrently.
#pragma once

#include <stdint.h>

#include "../codes.h"

#define RNN_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  int64_t T, B, I, H;
  int32_t dtype;          // rnn_dtype
  int32_t activation;     // rnn_activation
  const int32_t* tokens;  // [T,B], or null
  const void* x;          // [T,B,I] where tokens is null
  const void* h0;         // [B,H]
  const void* Wxh;        // [I,H]
  const void* Whh;        // [H,H]
  const void* bh;         // [H]
  void* h;                // [T,B,H]  out; all that backward needs: tanh' = 1 - h², relu' = (h > 0)
  int64_t threads;        // the most that the call uses if RNN_OPS_NUM_THREADS is not set; 0 for rnn_cpu_threads()
  void* openmp;           // GOMP_parallel of the OpenMP runtime whose threads share the work; null for threads of our own
  int64_t bad_token;      // out, with RNN_BAD_TOKEN: its position in tokens
} rnn_cpu_forward_args;

typedef struct {
  int64_t T, B, I, H;
  int32_t dtype;          // rnn_dtype
  int32_t activation;     // rnn_activation
  const int32_t* tokens;  // [T,B], or null
  const void* x;          // [T,B,I] where tokens is null; read for dWxh only
  const void* h0;         // [B,H]; read for dWhh only
  const void* Wxh;        // [I,H]; read for dx only
  const void* Whh;        // [H,H]
  const void* h;          // [T,B,H] as forward wrote it
  const void* dh;         // [T,B,H] gradient of h, or null for zeros
  const void* dh_last;    // [B,H] gradient of the last state, added to that of h[T-1]; or null for zeros
  void* da;               // [T,B,H]  out: gradient of x·Wxh + h·Whh + bh
  void* dx;               // [T,B,I]  out, or null if not wanted; null with tokens
  void* dh0;              // [B,H]  out, or null if not wanted, as the next three
  void* dWxh;             // [I,H]
  void* dWhh;             // [H,H]
  void* dbh;              // [H]
  int64_t threads;        // as above, as the next two
  void* openmp;
  int64_t bad_token;
} rnn_cpu_backward_args;

// Both return an rnn_status.
RNN_API int rnn_cpu_forward(rnn_cpu_forward_args* args);
RNN_API int rnn_cpu_backward(rnn_cpu_backward_args* args);

// y[i] = tanh(x[i]) as the kernels compute it, for measuring its error. y may be x.
RNN_API int rnn_cpu_tanh(int32_t dtype, int64_t n, const void* x, void* y);

// Does nothing but multiply-adds in registers, `rounds` rounds on each of `threads` threads (at least 1), for measuring the
// processor's peak. `simd` is one of rnn_cpu_simd_levels(), or null for the one in use. *count: how many multiply-adds they
// were, each lane of a vector counted, exact for up to 2^24 rounds.
RNN_API int rnn_cpu_multiply_adds(const char* simd, int32_t dtype, int32_t threads, int64_t rounds, double* count);

// How many threads a call uses at most: RNN_OPS_NUM_THREADS, else OMP_NUM_THREADS, else the processors that this
// process may run on. Read anew by each call. 0 where RNN_OPS_NUM_THREADS is not a positive number.
RNN_API int rnn_cpu_threads(void);

// How the steps of B rows and H columns are split over at most `threads` threads: *rows groups of rows, each of them cut into
// *columns groups of columns. l1, l2: bytes of a core's own caches, 0 for those of this machine. With the SIMD level in use; the
// results stay as they are where RNN_OPS_SIMD names none.
RNN_API void rnn_cpu_split(int64_t B, int64_t H, int32_t dtype, int threads, int64_t l1, int64_t l2, int* rows, int* columns);

// The SIMD levels that this build and this processor have, best first, separated by spaces, and the one in use:
// RNN_OPS_SIMD, else the best. Null where RNN_OPS_SIMD names none of them.
RNN_API const char* rnn_cpu_simd_levels(void);
RNN_API const char* rnn_cpu_simd(void);

#ifdef __cplusplus
}
#endif
