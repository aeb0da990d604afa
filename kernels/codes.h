// The numbers that C, C++, CUDA and Python agree on: the one place where they are written down.
//
// C, C++ and CUDA sources include this file; NVRTC gets it as a part of the kernels' text, so it includes nothing itself.
// Python has the same numbers in rnn_ops/backends/codes.py, and tests/test_codes.py compares the two.
#pragma once

enum rnn_dtype { RNN_FLOAT32 = 0, RNN_FLOAT64 = 1 };

enum rnn_activation { RNN_TANH = 0, RNN_RELU = 1 };

enum rnn_direction { RNN_FORWARD = 0, RNN_BACKWARD = 1 };

// The results of a call of the CPU kernels are whole with RNN_OK, undefined with RNN_NO_MEMORY and untouched otherwise.
enum rnn_status {
  RNN_OK = 0,
  RNN_BAD_TOKEN = 1,    // a token is outside [0, I)
  RNN_NO_MEMORY = 2,    // the workspace (copies of Wxh or Whh, at most one for each thread) cannot be allocated
  RNN_BAD_THREADS = 3,  // RNN_OPS_NUM_THREADS is set and is not a positive number
  RNN_BAD_SIMD = 4,     // RNN_OPS_SIMD is set and is not a SIMD level that this build and this processor have
};

// Memory that a call of the MXNet operator uses. The first five regions are its arguments, in the order in which users pass them;
// the gradients of the arguments have the same order. A program for a GPU names memory by region (recorder.py, gpu.cc).
enum rnn_region {
  RNN_INPUTS = 0,
  RNN_STATE = 1,
  RNN_WXH = 2,
  RNN_WHH = 3,
  RNN_BH = 4,
  RNN_OUTPUTS = 5,
  RNN_LAST_STATE = 6,
  RNN_DOUTPUTS = 7,
  RNN_DLAST_STATE = 8,
  RNN_DINPUTS = 9,
  RNN_DSTATE = 10,
  RNN_DWXH = 11,
  RNN_DWHH = 12,
  RNN_DBH = 13,
  RNN_WORKSPACE = 14,
};

enum { RNN_ACTIVATIONS = 2, RNN_ARGUMENTS = 5, RNN_REGIONS = 15 };

// What happens to a gradient of the MXNet operator: it is computed, or each of its bytes is set to this value.
enum rnn_fill { RNN_COMPUTE = -1, RNN_ZEROS = 0, RNN_NANS = 0xff };
