// Threads that share the work of one call.
#ifndef RNN_THREADS_H_
#define RNN_THREADS_H_

#include <stdint.h>

namespace rnn {

// How often a thread that waits for another one spins, about 20 µs, before it gives its core away.
constexpr int kSpins = 1000;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// RNN_OPS_NUM_THREADS, else OMP_NUM_THREADS, else the processors that this process may run on; 0 where the first is
// set and not a positive number.
int thread_limit();

// Calls task(context, i, n) once for each i in [0, n) and returns when all have finished. The calls run side by side on
// a pool of threads; where another caller has the pool, or no thread can be had, this thread makes all of them itself.
void run_parallel(int n, void (*task)(void* context, int i, int n), void* context);

// Calls part(i, begin, end) for n shares of [0, count), side by side.
template <class Part>
void share_out(int n, int64_t count, const Part& part) {
  struct Context {
    const Part& part;
    int64_t count;
  } context = {part, count};
  run_parallel(n, [](void* p, int i, int of) {
    const Context& c = *static_cast<Context*>(p);
    c.part(i, c.count * i / of, c.count * (i + 1) / of);
  }, &context);
}

}  // namespace rnn
#endif  // RNN_THREADS_H_
