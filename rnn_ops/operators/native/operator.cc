/* The recurrence as a native MXNet operator, `rnn_ops_native`: a library for MXLoadLib, on the CPU kernels.
 *
 *     step=0: inputs (T, B, I) or tokens (T, B), state, Wxh, Whh, bh -> outputs (T, B, H), state (B, H)
 *     step=1: inputs (B, I)    or tokens (B,),   state, Wxh, Whh, bh -> state (B, H)
 *
 * Shapes, types and errors; the arithmetic is that of kernels/cpu. The sentences of the errors are those of
 * rnn_ops/backends/arguments.py. What lib_api.h (version 11) keeps from an operator, its callers must see to, as
 * rnn_ops/operators/native/functions.py does:
 * - There is no `req`. A gradient overwrites what is in its place, also where MXNet asks for a sum.
 * - There is no way to say "not known yet" of a shape, so one that does not follow from the others is an error.
 */
#include <dlfcn.h>

#include <memory>

// lib_api.cc keeps every message for good, and MXNet attaches all of them to each new error. Here a thread has the message
// of its last call only, which is when MXNet asks.
#define _msgSize all_messages_size
#define _msgGet all_messages_get
#include "lib_api.cc"
#undef _msgSize
#undef _msgGet

#include "rnn_cpu.h"

namespace {

using mxnet::ext::MXReturnValue;
using mxnet::ext::MXTensor;
using mxnet::ext::OpResource;
using mxnet::ext::MX_FAIL;
using mxnet::ext::MX_SUCCESS;
using Attributes = std::unordered_map<std::string, std::string>;
using Shape = std::vector<int64_t>;

const char* const kNames[] = {"inputs", "state", "Wxh", "Whh", "bh"};
const int kArguments = 5;
const int64_t kUnknown = -1;

thread_local std::string message;  // empty where there is none

decltype(&rnn_cpu_forward) cpu_forward = nullptr;
decltype(&rnn_cpu_backward) cpu_backward = nullptr;
decltype(&rnn_cpu_simd_levels) cpu_simd_levels = nullptr;

struct Error {
  std::string sentence;
};

[[noreturn]] void fail(const std::string& name, const std::string& got, const std::string& needs) {
  throw Error{name + ": got " + got + ", needs " + needs};
}

// No exception may leave the library: MXNet's side of the call is C.
template <typename Body>
MXReturnValue guarded(Body body) {
  message.clear();
  try {
    body();
    return MX_SUCCESS;
  } catch (const Error& error) {
    message = error.sentence;
  } catch (const std::exception& error) {
    message = error.what();
  }
  return MX_FAIL;
}

// Attributes ---------------------------------------------------------------------------------------------------------

struct Options {
  bool step;
  int32_t activation;
  bool wanted[kArguments];  // which gradients anybody asks for; the others are not computed
};

Options options(const Attributes& attributes) {
  Options found = {false, RNN_TANH, {true, true, true, true, true}};
  for (const auto& attribute : attributes) {
    const std::string &name = attribute.first, &value = attribute.second;
    if (name == "activation") {
      if (value != "tanh" && value != "relu") fail(name, "'" + value + "'", "'tanh' or 'relu'");
      found.activation = value == "relu" ? RNN_RELU : RNN_TANH;
    } else if (name == "step") {
      if (value != "0" && value != "1") fail(name, "'" + value + "'", "0 or 1");
      found.step = value == "1";
    } else if (name == "wanted") {
      if (value.size() != kArguments || value.find_first_not_of("01") != std::string::npos) {
        fail(name, "'" + value + "'", "a 0 or 1 for each of the five arguments");
      }
      for (int i = 0; i < kArguments; ++i) found.wanted[i] = value[i] == '1';
    } else if (name.compare(0, 2, "__") != 0) {  // those are notes on a node, MXNet's and the user's
      fail("attributes", "'" + name + "'", "step, activation and wanted only");
    }
  }
  return found;
}

MXReturnValue parse_attributes(const Attributes& attributes, int* inputs, int* outputs) {
  return guarded([&] {
    *inputs = kArguments;
    *outputs = options(attributes).step ? 1 : 2;
  });
}

// Types --------------------------------------------------------------------------------------------------------------

bool is_float(int type) { return type == mxnet::ext::kFloat32 || type == mxnet::ext::kFloat64; }

std::string type_name(int type) {
  switch (type) {
    case mxnet::ext::kFloat32: return "float32";
    case mxnet::ext::kFloat64: return "float64";
    case mxnet::ext::kFloat16: return "float16";
    case mxnet::ext::kUint8: return "uint8";
    case mxnet::ext::kInt32: return "int32";
    case mxnet::ext::kInt8: return "int8";
    case mxnet::ext::kInt64: return "int64";
    case 7: return "bool";
    default: return "number " + std::to_string(type);
  }
}

MXReturnValue infer_types(const Attributes&, std::vector<int>* in, std::vector<int>* out) {
  return guarded([&] {
    const int inputs = (*in)[0];
    const bool tokens = inputs == mxnet::ext::kInt32;
    if (inputs != kUnknown && !tokens && !is_float(inputs)) {
      fail("inputs", "dtype " + type_name(inputs), std::string("float32, float64 or int32 (tokens)") +
           (inputs == mxnet::ext::kFloat16 ? "" : "; cast tokens with astype('int32')"));
    }
    int type = kUnknown, source = 0;
    for (int i = 1; i < kArguments; ++i) {
      const int got = (*in)[i];
      if (got == kUnknown) continue;
      if (!is_float(got)) fail(kNames[i], "dtype " + type_name(got), "float32 or float64");
      if (type == kUnknown) {
        type = got;
        source = i;
      }
      if (got != type) {
        fail(kNames[i], "dtype " + type_name(got), type_name(type) + ", the dtype of " + kNames[source]);
      }
    }
    if (inputs != kUnknown && !tokens) {
      if (type == kUnknown) type = inputs;
      if (inputs != type) {
        fail("inputs", "dtype " + type_name(inputs), type_name(type) + ", the dtype of " + kNames[source]);
      }
    }
    if (type == kUnknown && tokens) type = mxnet::ext::kFloat32;  // MXNet's default
    for (int& each : *in) each = each == kUnknown ? type : each;
    for (int& each : *out) each = type;
  });
}

// Shapes -------------------------------------------------------------------------------------------------------------

template <typename Items, typename Text>
std::string brackets(const Items& items, Text text) {
  std::string joined;
  for (const auto& item : items) joined += (joined.empty() ? "" : ", ") + text(item);
  return "(" + joined + (items.size() == 1 ? ",)" : ")");
}

std::string shape_text(const Shape& shape) {
  return brackets(shape, [](int64_t size) { return std::to_string(size); });
}

std::string needed_inputs(bool step) {
  return step ? "(B, I) of floats or (B,) of int32 tokens" : "(T, B, I) of floats or (T, B) of int32 tokens";
}

// The letter of each dimension of each argument.
std::vector<std::string> letters(const Shape& inputs, bool step) {
  const std::string dense = step ? "BI" : "TBI";
  if (!inputs.empty() && inputs.size() != dense.size() && inputs.size() != dense.size() - 1) {
    fail("inputs", "shape " + shape_text(inputs), needed_inputs(step));
  }
  return {dense.substr(0, inputs.size()), "BH", "IH", "HH", "H"};
}

struct Size {
  int64_t size = kUnknown;
  std::string source;  // the argument that it was read from
};
using Sizes = std::map<char, Size>;

[[noreturn]] void misfit(const std::string& name, const Shape& shape, const std::string& pattern, const Sizes& sizes) {
  std::string known, why;
  for (char letter : pattern) {
    const auto found = sizes.find(letter);
    const std::string word = std::string(1, letter) + " = ";
    if (found == sizes.end() || why.find(word) != std::string::npos) continue;
    why += (why.empty() ? " with " : " and ") + word + std::to_string(found->second.size) + " from " + found->second.source;
  }
  const std::string wanted = brackets(pattern, [](char letter) { return std::string(1, letter); });
  if (!why.empty()) {
    known = brackets(pattern, [&](char letter) {
      const auto found = sizes.find(letter);
      return found == sizes.end() ? std::string(1, letter) : std::to_string(found->second.size);
    }) + ", ";
  }
  fail(name, "shape " + shape_text(shape), known + wanted + why);
}

// The size of each letter, from the shapes that are known. An unknown shape is empty, an unknown dimension negative.
Sizes read_sizes(const std::vector<Shape>& shapes, const std::vector<std::string>& patterns) {
  Sizes sizes;
  for (int i = 0; i < kArguments; ++i) {
    const Shape& shape = shapes[i];
    const std::string& pattern = patterns[i];
    if (shape.empty()) continue;
    const Sizes before = sizes;
    if (shape.size() != pattern.size()) misfit(kNames[i], shape, pattern, before);
    for (size_t d = 0; d < shape.size(); ++d) {
      if (shape[d] == 0) fail(kNames[i], "shape " + shape_text(shape), "every dimension to be at least 1");
      if (shape[d] < 0) continue;
      Size& known = sizes[pattern[d]];
      if (known.size == kUnknown) known = {shape[d], kNames[i]};
      if (known.size != shape[d]) misfit(kNames[i], shape, pattern, before);
    }
  }
  return sizes;
}

std::vector<unsigned> sized(const std::string& pattern, const Sizes& sizes) {
  std::vector<unsigned> shape;
  for (char letter : pattern) shape.push_back(static_cast<unsigned>(sizes.at(letter).size));
  return shape;
}

MXReturnValue infer_shapes(const Attributes& attributes, std::vector<std::vector<unsigned>>* in,
                           std::vector<std::vector<unsigned>>* out) {
  return guarded([&] {
    const bool step = options(attributes).step;
    std::vector<Shape> shapes;
    for (const auto& shape : *in) {
      shapes.emplace_back();
      // -1 where MXNet does not know a dimension, but unsigned.
      for (unsigned size : shape) shapes.back().push_back(static_cast<int32_t>(size));
    }
    const auto patterns = letters(shapes[0], step);
    const Sizes sizes = read_sizes(shapes, patterns);
    for (int i = 0; i < kArguments; ++i) {
      bool known = i > 0 || !shapes[0].empty();
      for (char letter : patterns[i]) known = known && sizes.count(letter);
      if (!known) {
        const std::string wanted =
            i == 0 ? needed_inputs(step) : brackets(patterns[i], [](char letter) { return std::string(1, letter); });
        fail(kNames[i], "a shape that is not known and does not follow from the other arguments", wanted);
      }
    }
    for (int i = 0; i < kArguments; ++i) (*in)[i] = sized(patterns[i], sizes);
    (*out)[0] = sized(step ? "BH" : "TBH", sizes);
    if (!step) (*out)[1] = sized("BH", sizes);
  });
}

// The two passes -----------------------------------------------------------------------------------------------------

struct Problem {
  int64_t T, B, I, H;
  bool tokens;
  int32_t dtype;
  size_t item;  // bytes of a float
};

Problem problem(const MXTensor& inputs, const MXTensor& Wxh, const MXTensor& state, bool step) {
  const size_t rank = inputs.shape.size() + step;  // that of a sequence
  const bool tokens = inputs.dtype == mxnet::ext::kInt32;
  if (rank != (tokens ? 2 : 3)) {
    fail("inputs", type_name(inputs.dtype) + " of shape " + shape_text(inputs.shape),
         needed_inputs(step) + (tokens ? "" : "; cast tokens with astype('int32')"));
  }
  const bool wide = state.dtype == mxnet::ext::kFloat64;
  return {step ? 1 : inputs.shape[0], state.shape[0], Wxh.shape[0], Wxh.shape[1],
          tokens, wide ? RNN_FLOAT64 : RNN_FLOAT32, wide ? sizeof(double) : sizeof(float)};
}

template <typename Args>
void set_problem(Args* args, const Problem& of, int32_t activation, const MXTensor& inputs) {
  args->T = of.T;
  args->B = of.B;
  args->I = of.I;
  args->H = of.H;
  args->dtype = of.dtype;
  args->activation = activation;
  if (of.tokens) {
    args->tokens = static_cast<const int32_t*>(inputs.data_ptr);
  } else {
    args->x = inputs.data_ptr;
  }
}

std::string quoted_setting(const char* name) {
  const char* value = getenv(name);
  return std::string("'") + (value ? value : "") + "'";
}

template <typename Args>
void check_status(int status, const Args& args, bool step) {
  if (status == RNN_BAD_TOKEN) {
    const int64_t t = args.bad_token / args.B, b = args.bad_token % args.B, bound = args.I;
    const std::string where = (step ? "" : std::to_string(t) + ", ") + std::to_string(b);
    fail("inputs", "token " + std::to_string(args.tokens[args.bad_token]) + " at [" + where + "]",
         "0 <= token < " + std::to_string(bound) + ", I = " + std::to_string(bound) + " from Wxh");
  }
  if (status == RNN_BAD_THREADS) {
    fail("RNN_OPS_NUM_THREADS", quoted_setting("RNN_OPS_NUM_THREADS"), "a number of threads, 1 or more");
  }
  if (status == RNN_BAD_SIMD) fail("RNN_OPS_SIMD", quoted_setting("RNN_OPS_SIMD"), std::string("one of ") + cpu_simd_levels());
  if (status != RNN_OK) throw Error{"no memory for packed copies of Wxh and Whh"};
}

MXReturnValue forward(const Attributes& attributes, std::vector<MXTensor>* in, std::vector<MXTensor>* out,
                      const OpResource&) {
  return guarded([&] {
    const Options chosen = options(attributes);
    const MXTensor &inputs = (*in)[0], &state = (*in)[1], &Wxh = (*in)[2], &Whh = (*in)[3], &bh = (*in)[4];
    const Problem of = problem(inputs, Wxh, state, chosen.step);
    rnn_cpu_forward_args args = {};
    set_problem(&args, of, chosen.activation, inputs);
    args.h0 = state.data_ptr;
    args.Wxh = Wxh.data_ptr;
    args.Whh = Whh.data_ptr;
    args.bh = bh.data_ptr;
    args.h = (*out)[0].data_ptr;
    check_status(cpu_forward(&args), args, chosen.step);
    if (!chosen.step) {
      const size_t bytes = of.B * of.H * of.item;
      memcpy((*out)[1].data_ptr, static_cast<char*>(args.h) + (of.T - 1) * bytes, bytes);
    }
  });
}

// in: the gradients of the results, the arguments, the results.
MXReturnValue backward(const Attributes& attributes, std::vector<MXTensor>* in, std::vector<MXTensor>* out,
                       const OpResource& resource) {
  return guarded([&] {
    const Options chosen = options(attributes);
    const int results = chosen.step ? 1 : 2;
    const MXTensor &inputs = (*in)[results], &state = (*in)[results + 1], &Wxh = (*in)[results + 2];
    const Problem of = problem(inputs, Wxh, state, chosen.step);
    rnn_cpu_backward_args args = {};
    set_problem(&args, of, chosen.activation, inputs);
    args.h0 = state.data_ptr;
    args.Wxh = Wxh.data_ptr;
    args.Whh = (*in)[results + 3].data_ptr;
    args.h = (*in)[results + kArguments].data_ptr;
    args.dh = (*in)[0].data_ptr;
    args.dh_last = chosen.step ? nullptr : (*in)[1].data_ptr;
    // MXNet's workspace where it can be had (its size is an int): fresh memory costs a page fault every 4 KiB.
    const size_t bytes = of.T * of.B * of.H * of.item;
    std::unique_ptr<char[]> own;
    if (bytes <= INT32_MAX) {
      args.da = resource.alloc_cpu(static_cast<int>(bytes));
    } else {
      own.reset(new char[bytes]);
      args.da = own.get();
    }
    void* gradients[kArguments];
    for (int i = 0; i < kArguments; ++i) {
      MXTensor& gradient = (*out)[i];
      gradients[i] = chosen.wanted[i] ? gradient.data_ptr : nullptr;
      if (i == 0 && of.tokens) {  // what MXNet takes for the gradient of integers
        gradients[0] = nullptr;
        memset(gradient.data_ptr, 0, gradient.size() * sizeof(int32_t));
      } else if (!chosen.wanted[i]) {  // NaN, lest somebody take it for a gradient after all
        memset(gradient.data_ptr, 0xff, gradient.size() * of.item);
      }
    }
    args.dx = gradients[0];
    args.dh0 = gradients[1];
    args.dWxh = gradients[2];
    args.dWhh = gradients[3];
    args.dbh = gradients[4];
    check_status(cpu_backward(&args), args, chosen.step);
  });
}

template <typename Function>
void find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
}

}  // namespace

REGISTER_OP(rnn_ops_native)
.setForward(forward, "cpu")
.setBackward(backward, "cpu")
.setParseAttrs(parse_attributes)
.setInferType(infer_types)
.setInferShape(infer_shapes);

extern "C" {

/* Where the CPU kernels are. To be called before MXNet loads this library. Null, or why they cannot be had. */
RNN_API const char* rnn_ops_native_use_kernels(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return dlerror();
  find(library, "rnn_cpu_forward", &cpu_forward);
  find(library, "rnn_cpu_backward", &cpu_backward);
  find(library, "rnn_cpu_simd_levels", &cpu_simd_levels);
  return cpu_forward && cpu_backward && cpu_simd_levels ? nullptr : "it has none of the functions of rnn_cpu.h";
}

MX_INT_RET _msgSize() { return !message.empty(); }

MX_VOID_RET _msgGet(int, const char** text) {
  *text = message.c_str();
}

}  // extern "C"

MXReturnValue initialize(int version) {
  return version >= 10901 && cpu_forward ? MX_SUCCESS : MX_FAIL;
}
