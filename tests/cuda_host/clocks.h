// Vector clocks: they say which events of a launch happen before which others in any order of the threads.
//
// A thread's clock advances with each of its sends and meetings. The clock of an mbarrier counts the phases that have ended.
// Anything a thread did when its clock was at c happened before anything done by threads that know that the clock has reached c.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

namespace emulator {

constexpr uint32_t WARP = 32;

// The known time of each clock: first the threads' clocks, then the mbarriers'; 0 beyond the end.
using Clocks = std::vector<uint32_t>;

inline uint32_t known(const Clocks& clocks, uint32_t which) { return which < clocks.size() ? clocks[which] : 0; }

inline void join(Clocks& clocks, uint32_t which, uint32_t value) {
  if (clocks.size() <= which) clocks.resize(which + 1);
  clocks[which] = std::max(clocks[which], value);
}

inline void join(Clocks& clocks, const Clocks& others) {
  if (clocks.size() < others.size()) clocks.resize(others.size());
  for (size_t i = 0; i < others.size(); i++) clocks[i] = std::max(clocks[i], others[i]);
}

// The events that a thread knows of. Most threads know the same, so `others` is shared and never changed in place. The lanes of a
// warp learn about one another at every shuffle, so that is kept apart.
struct View {
  std::shared_ptr<const Clocks> others;
  uint32_t thread = 0;  // this thread's number
  uint32_t own = 1;     // this thread's clock
  uint32_t lanes = 0;   // the clocks of all lanes of its warp at their last meeting

  uint32_t knows(uint32_t which) const {
    if (which == thread) return own;
    const uint32_t value = known(*others, which);
    return which / WARP == thread / WARP ? std::max(value, lanes) : value;
  }

  // Adds the times that `others` does not have.
  void add_to(Clocks& clocks) const {
    const uint32_t first = thread / WARP * WARP;
    if (clocks.size() < first + WARP) clocks.resize(first + WARP);
    for (uint32_t i = 0; i < WARP; i++) clocks[first + i] = std::max(clocks[first + i], lanes);
    clocks[thread] = std::max(clocks[thread], own);
  }
};

}  // namespace emulator
