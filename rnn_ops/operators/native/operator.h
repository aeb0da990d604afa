// What the files of the native operator share: its options, its arrays, its errors, and who calls whom.
//
//     mxnet_abi.cc  the functions that MXNet looks for, in C; no exception leaves it
//     inference.cc  attributes, types and shapes
//     cpu.cc        the two passes on arrays of the CPU, by kernels/cpu
//     gpu.cc        the two passes on arrays of a GPU, by programs that Python has recorded (rnn_ops/operators/native/gpu.py)
//     front.cc      a call on NDArrays of the CPU, for rnn_ops/operators/native/front.py
//     custom_lookup.cc  another operator, `rnn_ops_lookup`, which MXNet has by its interface of custom operators
//
// The operator, `rnn_ops_native`:
//
//     step=0: inputs (T, B, I) or tokens (T, B), state, Wxh, Whh, bh -> outputs (T, B, H), state (B, H)
//     step=1: inputs (B, I)    or tokens (B,),   state, Wxh, Whh, bh -> state (B, H)
//     rank=1: the shape of the inputs, as shape_array gives it -> a zero, or an error where the number of dimensions is unknown
//
// The third goes before the others in a graph: functions.py says why. Its zero may be one more argument of theirs.
//
// The sentences of its errors are those of rnn_ops/backends/arguments.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../codes.h"  // in kernels/: the compiler is told to look in kernels/cpu

#define RNN_OPS_EXPORT extern "C" __attribute__((visibility("default")))

namespace rnn_ops {

extern const char* const NAMES[RNN_ARGUMENTS];

// MXNet's numbers of dtypes; -1 where it does not know.
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
  bool row = false;        // bh comes as (1, H), in graphs that earlier versions have saved
  int32_t activation = RNN_TANH;
  bool wanted[RNN_ARGUMENTS] = {true, true, true, true, true};  // which gradients anybody asks for; others are not computed
  bool hidden[RNN_ARGUMENTS] = {};  // of those, which nobody can see either: nothing is written there
  int arguments() const { return rank ? 1 : RNN_ARGUMENTS; }
  int results() const { return rank || step ? 1 : 2; }
};
Options options(const Attributes& attributes);

// inference.cc: complete the types and shapes of the arguments, where they follow, and give those of the results.
using Shape = std::vector<int64_t>;  // empty where it is not known, negative where a dimension is not
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
  int32_t dtype;                                                     // rnn_dtype
  int type() const { return dtype == RNN_FLOAT64 ? FLOAT64 : FLOAT32; }  // MXNet's number of the same dtype
  size_t item() const { return dtype == RNN_FLOAT64 ? sizeof(double) : sizeof(float); }
};

// Where the gradients go. What nobody asks for is null here, and full of NaN where it was, lest somebody take it for a
// gradient after all; tokens get 0, which MXNet takes for the gradient of integers.
rnn_fill fill_of_gradient(const Options& chosen, const Problem& of, int argument);

// A call. arguments: inputs, state, Wxh, Whh, bh. results: outputs and, of a sequence, the last state. gradients: of the
// arguments; cotangents: of the results. allocate: memory that lasts as long as the call, one piece a call.
struct Call {
  const Options& chosen;
  const Array* arguments;
  const Array* results;
  const Array* cotangents;  // null forward
  const Array* gradients;   // null forward
  void* (*allocate)(void*, int);
  void* allocator;
  int device;    // number of the GPU
  void* stream;  // of the GPU, MXNet's own
};

// inference.cc: whether these fit one another, and then what they ask for. Their data is not looked at.
bool arguments_fit(const Options& chosen, const Array* arguments, Problem* of);

// inference.cc: what a call computes, once all of its arrays have been seen to have the shapes and types for that. What
// MXNet has inferred says nothing of the memory: where an array has a 0 among its dimensions, or none, MXNet takes that for
// unknown and infers it.
Problem problem(const Call& call);

void cpu_forward(const Call& call);
void cpu_backward(const Call& call);
void gpu_forward(const Call& call);
void gpu_backward(const Call& call);

}  // namespace rnn_ops

RNN_OPS_EXPORT int rnn_ops_register_lookup();  // custom_lookup.cc
