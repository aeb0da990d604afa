// Vector clocks: which events of a launch happened before which others, whatever order the threads run in.
//
// A thread's clock goes on with each of its sends and meetings; that of an mbarrier counts its phases that have ended. What
// a thread did when its clock stood at c happened before all that is done by threads that know the clock to have got to c.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

namespace emulator {

constexpr uint32_t WARP = 32;

// How far each clock is known to have got: those of the threads, then those of the mbarriers; 0 beyond the end.
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

// What a thread knows to have happened. Most threads know the same, so `others` is shared and never changed in place. What
// the lanes of a warp know of one another is kept beside it, for it is news after every shuffle.
struct View {
  std::shared_ptr<const Clocks> others;
  uint32_t thread = 0;  // this one's number
  uint32_t own = 1;     // this one's clock
  uint32_t lanes = 0;   // where all lanes of its warp had got to at their last meeting; since then their clocks are later

  uint32_t knows(uint32_t which) const {
    if (which == thread) return own;
    const uint32_t value = known(*others, which);
    return which / WARP == thread / WARP ? std::max(value, lanes) : value;
  }

  // What is not in `others`.
  void add_to(Clocks& clocks) const {
    const uint32_t first = thread / WARP * WARP;
    if (clocks.size() < first + WARP) clocks.resize(first + WARP);
    for (uint32_t i = 0; i < WARP; i++) clocks[first + i] = std::max(clocks[first + i], lanes);
    clocks[thread] = std::max(clocks[thread], own);
  }
};

}  // namespace emulator
