// A pool of threads. They start when they are first needed and sleep between calls. A call has several phases; between them a
// thread spins for a while and then goes to sleep.
//
// Waking a thread may take longer than the work. So a task belongs to the thread that takes it first, and the caller, which is
// awake, does the tasks that nobody else has taken.
#include "threads.h"

#include <pthread.h>
#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

namespace rnn {
namespace {

// There may be more tasks than threads. Far more threads than processors would only slow one another down.
const int MOST_WORKERS = std::max(64, 4 * static_cast<int>(std::thread::hardware_concurrency()));

class Pool {
 public:
  void run(int n, void (*task)(void*, int, int), void* context) {
    std::unique_lock<std::mutex> turn(callers_, std::try_to_lock);
    const int workers = std::min(n - 1, MOST_WORKERS);
    if (!turn.owns_lock() || !has_room_for(n) || !has_workers(workers)) {
      for (int i = 0; i < n; ++i) task(context, i, n);
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = {n, task, context};
      for (int i = 0; i < n; ++i) begun_[i].store(false, std::memory_order_relaxed);
      places_.store(workers, std::memory_order_relaxed);
      generation_.fetch_add(1, std::memory_order_release);
    }
    for (int i = 0; i < workers; ++i) wake_.notify_one();
    work_on(job_, 0);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      places_.store(0, std::memory_order_relaxed);  // a worker that comes now is too late
    }
    for (int spins = 0; at_work_.load(std::memory_order_acquire) != 0; ++spins) {
      if (spins < SPINS) pause();
      else std::this_thread::yield();
    }
  }

 private:
  struct Job {
    int n;
    void (*task)(void*, int, int);
    void* context;
  };

  // False if this process can get no more memory.
  bool has_room_for(int n) {
    try {
      while (static_cast<int>(begun_.size()) < n) begun_.emplace_back(false);
    } catch (const std::bad_alloc&) {
      return false;
    }
    return true;
  }

  // False if this process can start no more threads.
  bool has_workers(int n) {
    try {
      for (; workers_ < n; ++workers_) std::thread(&Pool::work, this, workers_ + 1, generation_.load()).detach();
    } catch (const std::system_error&) {
      return false;
    }
    return true;
  }

  // Does the tasks of the job that no other thread has begun, starting with the thread's own.
  void work_on(const Job& job, int own) {
    for (int i = 0; i < job.n; ++i) {
      const int which = (own + i) % job.n;
      if (!begun_[which].exchange(true, std::memory_order_relaxed)) job.task(job.context, which, job.n);
    }
  }

  void work(int index, unsigned seen) {
    for (;;) {
      for (int spins = 0; spins < SPINS && generation_.load(std::memory_order_acquire) == seen; ++spins) pause();
      const unsigned now = generation_.load(std::memory_order_acquire);
      if (now != seen && places_.load(std::memory_order_relaxed) == 0) {  // the job has enough workers: skip the lock
        seen = now;
        continue;
      }
      Job job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
        seen = generation_.load(std::memory_order_relaxed);
        if (places_.load(std::memory_order_relaxed) == 0) continue;
        places_.fetch_sub(1, std::memory_order_relaxed);
        at_work_.fetch_add(1, std::memory_order_relaxed);
        job = job_;
      }
      work_on(job, index % job.n);
      at_work_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex callers_;  // held while a job runs
  int workers_ = 0;     // guarded by callers_

  std::mutex mutex_;  // guards job_ and places_; places_ may be read without it
  std::condition_variable wake_;
  Job job_ = {};
  std::atomic<unsigned> generation_{0};  // of job_; changes under mutex_
  std::atomic<int> places_{0};           // how many more workers the job can use
  std::atomic<int> at_work_{0};          // workers that have joined it
  std::deque<std::atomic<bool>> begun_;  // for each task of the job; callers_ guards its size
};

// Never destroyed, since its threads outlive main(). A forked child has none of the threads and makes a pool of its own. It cannot
// use OpenMP's, since their runtime waits for the threads of the parent.
Pool* pool = new Pool;
bool openmp_works = true;
const int at_fork = pthread_atfork(nullptr, nullptr, [] {
  pool = new Pool;
  openmp_works = false;
});

// The number at the start of a variable ("4" or OpenMP's "4,2"); 0 if it is not a positive number, -1 if unset.
int number_in(const char* variable) {
  const char* text = getenv(variable);
  if (!text || !*text) return -1;
  char* end;
  const long value = strtol(text, &end, 10);
  return value >= 1 && value <= 1 << 16 && (*end == 0 || *end == ',') ? static_cast<int>(value) : 0;
}

thread_local OpenMP openmp = nullptr;

void run_by_openmp(int n, void (*task)(void*, int, int), void* context) {
  struct Job {
    int n;
    void (*task)(void*, int, int);
    void* context;
    std::atomic<int> next;
  } job = {n, task, context, {0}};
  // The runtime may give fewer threads than n: each takes tasks until there are none.
  const auto body = [](void* data) {
    Job& job = *static_cast<Job*>(data);
    for (int i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.n;) job.task(job.context, i, job.n);
  };
  openmp(body, &job, n, 0);
}

}  // namespace

WithOpenMP::WithOpenMP(OpenMP parallel) { openmp = openmp_works ? parallel : nullptr; }
WithOpenMP::~WithOpenMP() { openmp = nullptr; }

int thread_limit(int64_t wanted) {
  const int ours = number_in("RNN_OPS_NUM_THREADS");
  if (ours >= 0) return ours;
  if (wanted > 0) return static_cast<int>(std::min<int64_t>(wanted, 1 << 16));
  const int theirs = number_in("OMP_NUM_THREADS");
  if (theirs > 0) return theirs;
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  const unsigned processors = std::thread::hardware_concurrency();
  return processors ? static_cast<int>(processors) : 1;
}

void run_parallel(int n, void (*task)(void*, int, int), void* context) {
  if (n == 1) task(context, 0, 1);
  else if (openmp) run_by_openmp(n, task, context);
  else pool->run(n, task, context);
}

}  // namespace rnn
