// The declarations that the files of the native operator share: its options, its arrays and its errors.
//
//     mxnet_abi.cc  the functions that MXNet looks for, in C; no exception leaves it
//     inference.cc  attributes, types and shapes
//     cpu.cc        the two passes on arrays of the CPU, by kernels/cpu
//     gpu.cc        the two passes on arrays of a GPU, by programs that Python has recorded (rnn_ops/operators/native/gpu.py)
//     front.cc      a short way into the operator for NDArrays of the CPU (rnn_ops/operators/native/front.py)
//     custom_lookup.cc  another operator, `rnn_ops_lookup`, a custom operator of MXNet
//
// The operator, `rnn_ops_native`:
//
//     step=0: inputs (T, B, I) or tokens (T, B), state, Wxh, Whh, bh -> outputs (T, B, H), state (B, H)
//     step=1: inputs (B, I)    or tokens (B,),   state, Wxh, Whh, bh -> state (B, H)
//     rank=1: the shape of the inputs, as shape_array gives it -> a zero, or an error where the number of dimensions is unknown
//
// In a graph the third form comes before the others, which may take its zero as one more argument: bug 5 in
// rnn_ops/_mxnet_bugs.py.
//
// Errors have the sentences of rnn_ops/backends/arguments.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../codes.h"  // in kernels/: the compiler is told to look in kernels/cpu

#define RNN_OPS_EXPORT extern "C" __attribute__((visibility("default")))

namespace rnn_ops {

extern const char* const NAMES[RNN_ARGUMENTS];          // of the arguments
extern const char* const ACTIVATIONS[RNN_ACTIVATIONS];  // by rnn_activation

// MXNet's numbers of dtypes; -1 for an unknown one.
enum { UNKNOWN = -1, FLOAT32 = 0, FLOAT64 = 1, FLOAT16 = 2, UINT8 = 3, INT32 = 4, INT8 = 5, INT64 = 6, BOOL = 7 };

struct Error {
  std::string sentence;
};
[[noreturn]] void fail(const std::string& name, const std::string& got, const std::string& needs);

// A node's attributes as MXNet hands them over.
struct Attributes {
  const char* const* names;
  const char* const* values;
  int count;
};

struct Options {
  bool step = false;
  bool rank = false;
  bool row = false;  // bh is (1, H), as in graphs that earlier versions saved
  int32_t activation = RNN_TANH;
  bool wanted[RNN_ARGUMENTS] = {true, true, true, true, true};  // gradients to compute
  bool hidden[RNN_ARGUMENTS] = {};                              // gradients that nobody can see: nothing is written there
  int arguments() const { return rank ? 1 : RNN_ARGUMENTS; }
  int results() const { return rank || step ? 1 : 2; }
};
Options options(const Attributes& attributes);

// inference.cc: complete the types and shapes of the arguments as far as they follow from one another, and give those of the
// results. An unknown shape is empty, an unknown dimension is negative.
using Shape = std::vector<int64_t>;
void infer_types(const Options& chosen, std::vector<int>* arguments, std::vector<int>* results);
void infer_shapes(const Options& chosen, std::vector<Shape>* arguments, std::vector<Shape>* results);

struct Array {
  void* data;
  const int64_t* shape;
  int rank;
  int dtype;
  int64_t size() const;
};
bool overlap(const Array& a, const Array& b, size_t item);  // item: of a float's bytes

// The sizes and kinds of a call.
struct Problem {
  int64_t T, B, I, H;
  bool tokens;
  int32_t dtype;  // rnn_dtype
  // MXNet's number of the same dtype.
  int type() const { return dtype == RNN_FLOAT64 ? FLOAT64 : FLOAT32; }
  size_t item() const { return dtype == RNN_FLOAT64 ? sizeof(double) : sizeof(float); }
};

// Whether a gradient is computed. A gradient that was not requested is filled with NaN, so that using it is noticed. Tokens get
// 0, MXNet's gradient of integers.
rnn_fill fill_of_gradient(const Options& chosen, const Problem& of, int argument);

// A call. results: the outputs and, for a sequence, the last state. gradients: of the arguments; cotangents: of the results.
// allocate: gives memory for as long as the call lasts, once a call.
struct Call {
  const Options& chosen;
  const Array* arguments;
  const Array* results;
  const Array* cotangents;  // null in a forward pass
  const Array* gradients;   // null in a forward pass
  void* (*allocate)(void*, int);
  void* allocator;
  int device;    // number of the GPU
  void* stream;  // of the GPU, MXNet's own
};

// inference.cc: whether the arguments fit one another; if so, the problem that they pose. Their data is not read.
bool arguments_fit(const Options& chosen, const Array* arguments, Problem* of);

// inference.cc: the problem that a call poses, after checking the shape and type of each of its arrays. The shapes that MXNet has
// inferred are no proof (bug 7 in rnn_ops/_mxnet_bugs.py).
Problem problem(const Call& call);

void cpu_forward(const Call& call);
void cpu_backward(const Call& call);
void gpu_forward(const Call& call);
void gpu_backward(const Call& call);

}  // namespace rnn_ops

RNN_OPS_EXPORT int rnn_ops_register_lookup();  // custom_lookup.cc
