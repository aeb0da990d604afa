// The words of CUDA C++ that the kernels use, for a C++ compiler on a CPU. Comes before a kernel's text.
#pragma once

#include <cmath>
#include <utility>

#include "emulator.h"

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define threadIdx (emulator::here().thread)
#define blockIdx (emulator::here().block)
#define blockDim (emulator::here().block_size)
#define gridDim (emulator::here().grid_size)

using std::fmaf;
using std::nanf;
using std::tanh;

struct alignas(16) float4 {
  float x, y, z, w;
};

inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }

// Calls a kernel as a launch does, with the address of each argument. emulator.py compares SIZES with the arguments of a launch.
template <auto kernel>
struct Entry;
template <class... Arguments, void (*kernel)(Arguments...)>
struct Entry<kernel> {
  static constexpr int COUNT = sizeof...(Arguments);
  static constexpr int SIZES[] = {static_cast<int>(sizeof(Arguments))...};
  static void run(void** arguments) { unpack(arguments, std::index_sequence_for<Arguments...>()); }

 private:
  template <std::size_t... I>
  __attribute__((no_sanitize("thread"))) static void unpack(void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<Arguments*>(arguments[I])...);
  }
};
