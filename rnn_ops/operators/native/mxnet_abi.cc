// The functions that MXNet 1.9.1 looks for in a library of operators (MXLoadLib), by name.
//
// MXNet expects a library to compile the wheel's lib_api.cc into itself. But the interface is plain C, and final since MXNet has
// had its last release. So this file implements the few functions that an operator needs, and the library is compiled before it
// is installed. It also avoids bug 8 in rnn_ops/_mxnet_bugs.py: a thread keeps the message of its last call only, and MXNet asks
// for it right after the call.
//
// MXNet does not tell a native operator everything, so its callers must take care (rnn_ops/operators/native/guard.py):
// - There is no `req`: a gradient always overwrites, even where MXNet wants a sum (bug 4).
// - A shape cannot be "not known yet": one that does not follow from the other shapes is an error.
// - No shape may arrive here whose number of dimensions is unknown (bug 5).
#include <cstring>
#include <exception>

#include "operator.h"

namespace {

using namespace rnn_ops;

const int VERSION = 11;  // of the interface, in MXNet 1.9
const int FIRST_MXNET = 10901;
enum { FAILURE = 0, SUCCESS = 1 };

thread_local std::string message;  // empty if the last call succeeded

bool registered = false;

// No exception may leave the library: MXNet's side of the call is C.
template <class Body>
int guarded(Body body) {
  message.clear();
  try {
    body();
    return SUCCESS;
  } catch (const Error& error) {
    message = error.sentence;
  } catch (const std::exception& error) {
    message = error.what();
  }
  return FAILURE;
}

// The functions that we register. MXNet does not call them: it passes the registered address to _opCallFCompute, which thereby
// knows pass and device.
using Pass = void (*)(const Call&);
const char* devices[] = {"cpu", "gpu"};
Pass forward_passes[] = {cpu_forward, gpu_forward};
Pass backward_passes[] = {cpu_backward, gpu_backward};

std::vector<Array> arrays(int count, void** data, const int64_t** shapes, int* ranks, int* dtypes) {
  std::vector<Array> found;
  found.reserve(count);
  for (int i = 0; i < count; ++i) found.push_back({data[i], shapes[i], ranks[i], dtypes[i]});
  return found;
}

// Shapes in the form that MXNet reads. It copies them before its next call, so each thread has one buffer, which is never freed.
struct HandedOver {
  static constexpr int MOST = RNN_ARGUMENTS + 1;  // with the zero of rank=1
  unsigned dimensions[MOST][3];
  unsigned* rows[MOST];
  int ranks[MOST];
};
thread_local HandedOver arguments_handed_over, results_handed_over;

void hand_over(const std::vector<Shape>& shapes, HandedOver* place, unsigned*** dimensions, int** ranks) {
  for (size_t i = 0; i < shapes.size(); ++i) {
    place->rows[i] = place->dimensions[i];
    place->ranks[i] = static_cast<int>(shapes[i].size());
    for (size_t d = 0; d < shapes[i].size(); ++d) place->dimensions[i][d] = static_cast<unsigned>(shapes[i][d]);
  }
  *dimensions = place->rows;
  *ranks = place->ranks;
}

}  // namespace

RNN_OPS_EXPORT int _opVersion() { return VERSION; }

RNN_OPS_EXPORT int initialize(int mxnet) {
  return guarded([&] {
    if (mxnet < FIRST_MXNET) throw Error{"rnn_ops needs MXNet 1.9.1"};
    rnn_ops_register_lookup();
  });
}

RNN_OPS_EXPORT int _msgSize() { return !message.empty(); }

RNN_OPS_EXPORT void _msgGet(int, const char** text) { *text = message.c_str(); }

// How many operators MXNet has to register. It refuses an operator that it knows, and the library may be loaded twice, by
// Python's rnn_ops and by mx.library.load: the second time the number is 0.
RNN_OPS_EXPORT int _opRegSize() { return !registered; }

RNN_OPS_EXPORT int _opCallParseAttrs(void*, const char* const* names, const char* const* values, int count, int* inputs,
                                     int* outputs) {
  return guarded([&] {
    const Options chosen = options({names, values, count});
    *inputs = chosen.arguments();
    *outputs = chosen.results();
  });
}

RNN_OPS_EXPORT int _opCallInferType(void*, const char* const* names, const char* const* values, int count, int* types, int inputs,
                                    int* result_types, int outputs) {
  return guarded([&] {
    std::vector<int> in(types, types + inputs), out(outputs);
    infer_types(options({names, values, count}), &in, &out);
    memcpy(types, in.data(), inputs * sizeof(int));
    memcpy(result_types, out.data(), outputs * sizeof(int));
  });
}

RNN_OPS_EXPORT int _opCallInferShape(void*, const char* const* names, const char* const* values, int count, unsigned** dimensions,
                                     int* ranks, int inputs, unsigned*** new_dimensions, int** new_ranks,
                                     unsigned*** result_dimensions, int** result_ranks, int outputs) {
  return guarded([&] {
    std::vector<Shape> in(inputs), out(outputs);
    for (int i = 0; i < inputs; ++i) {
      // An unknown dimension is -1, but unsigned. The rank is -1 if it is unknown.
      for (int d = 0; d < ranks[i]; ++d) in[i].push_back(static_cast<int32_t>(dimensions[i][d]));
    }
    infer_shapes(options({names, values, count}), &in, &out);
    hand_over(in, &arguments_handed_over, new_dimensions, new_ranks);
    hand_over(out, &results_handed_over, result_dimensions, result_ranks);
  });
}

RNN_OPS_EXPORT void _opCallFree(void*) {}

// in: forward the arguments; backward the cotangents, the arguments, the results. out: the results, the gradients.
RNN_OPS_EXPORT int _opCallFCompute(Pass pass, const char* const* names, const char* const* values, int count,
                                   const int64_t** in_shapes, int* in_ranks, void** in_data, int* in_types, size_t*, const char**,
                                   int* in_devices, int inputs, const int64_t** out_shapes, int* out_ranks, void** out_data,
                                   int* out_types, size_t*, const char**, int*, int outputs, void* (*cpu_allocate)(void*, int),
                                   void* cpu_allocator, void* (*gpu_allocate)(void*, int), void* gpu_allocator, void* stream,
                                   void*, void*, int*, int*, void**, void**, void**, void**, int64_t*, int64_t*, int64_t*,
                                   int64_t*, void*, void*) {
  return guarded([&] {
    const Options chosen = options({names, values, count});
    const auto in = arrays(inputs, in_data, in_shapes, in_ranks, in_types);
    const auto out = arrays(outputs, out_data, out_shapes, out_ranks, out_types);
    const bool backward = pass == cpu_backward || pass == gpu_backward, on_gpu = pass == gpu_forward || pass == gpu_backward;
    // The zero of rank=1 and its gradient: no operator reads them, but a Monitor shows them.
    if (!on_gpu && chosen.rank) memset(out[0].data, 0, out[0].size() * (backward ? sizeof(int64_t) : sizeof(float)));
    if (!on_gpu && backward && outputs > RNN_ARGUMENTS)
      memset(out[RNN_ARGUMENTS].data, 0, out[RNN_ARGUMENTS].size() * sizeof(float));
    if (chosen.rank) return;
    const int results = chosen.results();
    const Array* arguments = in.data() + (backward ? results : 0);
    pass({chosen, arguments, backward ? in.data() + inputs - results : out.data(), backward ? in.data() : nullptr,
          backward ? out.data() : nullptr, on_gpu ? gpu_allocate : cpu_allocate, on_gpu ? gpu_allocator : cpu_allocator,
          in_devices[0], stream});
  });
}

RNN_OPS_EXPORT void _opRegGet(int, const char** name, int* is_subgraph, const char*** forward_devices, Pass** forward,
                              int* forward_count, const char*** backward_devices, Pass** backward, int* backward_count,
                              const char***, void***, int* state_count, void** parse, void** infer_type, void** infer_storage,
                              void** infer_shape, void** mutate) {
  registered = true;
  *name = "rnn_ops_native";
  *is_subgraph = 0;
  *forward_devices = *backward_devices = devices;
  *forward = forward_passes;
  *backward = backward_passes;
  *forward_count = *backward_count = 2;
  *state_count = 0;
  *parse = reinterpret_cast<void*>(_opCallParseAttrs);
  *infer_type = reinterpret_cast<void*>(_opCallInferType);
  *infer_shape = reinterpret_cast<void*>(_opCallInferShape);
  *infer_storage = *mutate = nullptr;  // all arrays are dense, and none is changed in place
}

// Symbols that MXLoadLib requires. They return 0: no partitioner, no pass, no operator with a state.
#define ABSENT(name) \
  RNN_OPS_EXPORT int name() { return 0; }
ABSENT(_opCallInferSType)
ABSENT(_opCallMutateInputs)
ABSENT(_opCallCreateOpState)
ABSENT(_opCallDestroyOpState)
ABSENT(_opCallFStatefulCompute)
ABSENT(_partRegSize)
ABSENT(_partRegGetCount)
ABSENT(_partRegGet)
ABSENT(_partCallSupportedOps)
ABSENT(_partCallCreateSelector)
ABSENT(_partCallSelect)
ABSENT(_partCallSelectInput)
ABSENT(_partCallSelectOutput)
ABSENT(_partCallFilter)
ABSENT(_partCallReset)
ABSENT(_partCallReviewSubgraph)
ABSENT(_passRegSize)
ABSENT(_passRegGet)
ABSENT(_passCallGraphPass)
