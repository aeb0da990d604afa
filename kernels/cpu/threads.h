// Threads that share the work of one call.
#pragma once

#include <stdint.h>
#include <string.h>

#include <algorithm>

namespace rnn {

// How often a thread that waits for another one spins, about 20 µs, before it gives up its core.
constexpr int SPINS = 1000;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// RNN_OPS_NUM_THREADS, else `wanted` if it is positive, else OMP_NUM_THREADS, else the processors that this process may run on; 0 if
// the first is set and is not a positive number.
int thread_limit(int64_t wanted = 0);

// GOMP_parallel, by which compiled OpenMP programs start a parallel region. Libraries of GCC, LLVM and Intel have it.
using OpenMP = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// For as long as this lives, the calls of run_parallel in its thread use the threads of an OpenMP runtime, if it is not null.
// Where a program computes with OpenMP too, its threads spin for some time after each parallel region, and threads of our own
// would share the processors with them.
class WithOpenMP {
 public:
  explicit WithOpenMP(OpenMP parallel);
  ~WithOpenMP();
  WithOpenMP(const WithOpenMP&) = delete;
  WithOpenMP& operator=(const WithOpenMP&) = delete;
};

// Calls task(context, i, n) once for each i in [0, n) and returns when all have finished. The calls run side by side on a pool of
// threads. If another caller has the pool, or no thread can be started, this thread makes all calls itself.
void run_parallel(int n, void (*task)(void* context, int i, int n), void* context);

// Calls part(i, begin, end) for n shares of [0, count), side by side.
template <class Part>
void share_out(int n, int64_t count, const Part& part) {
  struct Context {
    const Part& part;
    int64_t count;
  } context = {part, count};
  const auto task = [](void* p, int i, int of) {
    const Context& c = *static_cast<Context*>(p);
    c.part(i, c.count * i / of, c.count * (i + 1) / of);
  };
  run_parallel(n, task, &context);
}

// Calls part(begin, end) for shares of [0, count), side by side, on at most `threads` threads: the more `bytes` of memory they use,
// the more shares.
template <class Part>
void share_out_bytes(int64_t bytes, int64_t count, const Part& part, int threads = thread_limit()) {
  constexpr int64_t BYTES = 1 << 17;  // worth waking a thread for (some 10 µs)
  const int64_t parts = std::min({bytes / BYTES + 1, count, static_cast<int64_t>(std::max(threads, 1))});
  share_out(static_cast<int>(parts), count, [&](int, int64_t begin, int64_t end) { part(begin, end); });
}

// One memset a thread: that of the C library bypasses the caches if there is much to write. 80 MB take 1 ms. (Zeroing a look-up's
// gradient block by block, and adding to each block while it is in a cache, took 4 ms.)
inline void fill_with_zeros(void* memory, int64_t bytes, int threads = thread_limit()) {
  share_out_bytes(
      bytes, bytes, [&](int64_t begin, int64_t end) { memset(static_cast<char*>(memory) + begin, 0, end - begin); }, threads);
}

}  // namespace rnn
