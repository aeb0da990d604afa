// Threads that compute the columns of the same rows, and meet at every step.
//
// Each member has a lane, its own columns, so that its part of Whh stays in its own cache. A step of a lane may begin when all
// lanes are done with the step before. If a member has done its own lane and another lane has not been begun (its owner has not
// woken up, or has lost its core), the member does that lane too. So a team makes progress as long as one member runs, and a late
// member finds its work done. If a lane has been begun, the member waits: it spins for some 20 µs, then gives up its core, then
// sleeps 50 µs at a time.
//
// The bits of a lane do not depend on the thread that computes it.
#pragma once

#include <stdint.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <new>
#include <thread>

#include "threads.h"

namespace rnn {

class Teams {
 public:
  Teams(int teams, int lanes) : count_(lanes), lanes_(new (std::nothrow) Lane[teams * lanes]) {}

  // False if there was no memory for the lanes.
  bool ready() const { return lanes_ != nullptr; }

  // The work of member `own` of a team: calls step(t, lane) for its lane, t = 0 to steps - 1, and for lanes whose owners are
  // late. Returns when all steps of all lanes of the team are done.
  template <class Step>
  void run(int team, int own, int64_t steps, const Step& step) const {
    Lane* lanes = lanes_.get() + team * count_;
    for (int64_t t = 0; t < steps; ++t) {
      if (begin(lanes, own, t, step) && lanes[own].late.load(std::memory_order_relaxed))
        lanes[own].late.store(false, std::memory_order_relaxed);
      for (int i = 1; i <= count_; ++i) finish(lanes, (own + i) % count_, t, step);
    }
  }

 private:
  // The thread that moves `begun` from t to t + 1 computes step t of the lane, and then moves `done`.
  struct alignas(128) Lane {
    std::atomic<int64_t> begun{0}, done{0};
    std::atomic<bool> late{false};  // another member computed the last step: do not wait for the owner
  };

  static constexpr int PATIENCE = 50;  // pauses, 1 to 2 µs, for which an owner may be late
  static constexpr int YIELDS = 100;

  // Computes step t of the lane, unless another member has begun it.
  template <class Step>
  static bool begin(Lane* lanes, int lane, int64_t t, const Step& step) {
    int64_t expected = t;
    if (!lanes[lane].begun.compare_exchange_strong(expected, t + 1, std::memory_order_relaxed)) return false;
    step(t, lane);
    lanes[lane].done.store(t + 1, std::memory_order_release);
    return true;
  }

  // Waits until step t of the lane is done, and computes it if no other member does.
  template <class Step>
  static void finish(Lane* lanes, int lane, int64_t t, const Step& step) {
    Lane& its = lanes[lane];
    for (int waited = 0; its.done.load(std::memory_order_acquire) <= t; ++waited) {
      const bool free = its.begun.load(std::memory_order_relaxed) == t;
      if (free && (waited >= PATIENCE || its.late.load(std::memory_order_relaxed)) && begin(lanes, lane, t, step)) {
        its.late.store(true, std::memory_order_relaxed);
      } else if (waited < SPINS) {
        pause();
      } else if (waited < SPINS + YIELDS) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
        waited = SPINS + YIELDS;
      }
    }
  }

  const int count_;
  const std::unique_ptr<Lane[]> lanes_;
};

}  // namespace rnn
