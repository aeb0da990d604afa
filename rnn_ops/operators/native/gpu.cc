// The two passes on arrays of a GPU. Python records a program once for each signature, and this file plays it.
//
// A program is a list of launches, matrix products, fills and copies. All sizes in it are final, only the addresses are not: each
// address is the number of a region (rnn_region) and an offset. Playing a program fills in the addresses and passes each item to
// the driver or to cuBLAS, in MXNet's stream, without waiting. No CUDA header and no CUDA library is needed to build this file or
// to load it: Python passes the functions' addresses with the first program.
//
// A token outside [0, I) is no error here, since that would take waiting for the tokens. It turns its row's states into NaN from
// that step on (kernels/cuda/passes.cuh).
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "operator.h"

namespace rnn_ops {
namespace {

// Functions of the driver (they return a CUresult) and of cuBLAS (cublasStatus_t); 0 is success. Device addresses are integers.
struct Functions {
  int (*launch)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                unsigned block_z, unsigned shared, void* stream, void** arguments, void** extra);
  int (*launch_cooperative)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                            unsigned block_z, unsigned shared, void* stream, void** arguments);
  int (*fill)(uint64_t to, unsigned char value, size_t bytes, void* stream);
  int (*copy)(uint64_t to, uint64_t from, size_t bytes, void* stream);
  int (*create_handle)(void** handle);
  int (*set_stream)(void* handle, void* stream);
  int (*multiply_float)(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const float* alpha, const void* a,
                        int lda, const void* b, int ldb, const float* beta, void* c, int ldc);
  int (*multiply_double)(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const double* alpha, const void* a,
                         int lda, const void* b, int ldb, const double* beta, void* c, int ldc);
};

void check(int status, const char* function) {
  if (status) throw Error{std::string(function) + " failed with status " + std::to_string(status)};
}

// From addresses in a program, where region n begins at (n + 1)·2^40, to addresses in memory. 0 stays 0.
class Addresses {
 public:
  void set(int region, const void* address) { begins_[region] = reinterpret_cast<uint64_t>(address); }
  uint64_t operator()(uint64_t recorded) const {
    if (!recorded) return 0;
    return begins_[(recorded >> 40) - 1] + (recorded & ((uint64_t{1} << 40) - 1));
  }

 private:
  uint64_t begins_[RNN_REGIONS] = {};
};

struct Stream {
  void* stream;
  void* handle;  // of cuBLAS. Each stream has its own, since a handle has a workspace.
  const Functions& functions;
};

struct Item {
  virtual ~Item() {}
  virtual void play(const Addresses& at, const Stream& on) const = 0;
};

struct Launch : Item {
  void* function;
  unsigned grid[3], block, shared;
  bool cooperative;
  std::vector<char> values;         // the arguments one after the other, each at a multiple of 8
  std::vector<uint32_t> begins;     // of each argument in `values`
  std::vector<uint32_t> addresses;  // of each address in `values`

  void play(const Addresses& at, const Stream& on) const override {
    std::vector<uint64_t> filled((values.size() + 7) / 8);  // aligned for every argument
    char* memory = reinterpret_cast<char*>(filled.data());
    memcpy(memory, values.data(), values.size());
    for (uint32_t offset : addresses) {
      uint64_t address;
      memcpy(&address, memory + offset, sizeof address);
      address = at(address);
      memcpy(memory + offset, &address, sizeof address);
    }
    std::vector<void*> arguments;
    for (uint32_t begin : begins) arguments.push_back(memory + begin);
    if (cooperative) {
      check(
          on.functions.launch_cooperative(function, grid[0], grid[1], grid[2], block, 1, 1, shared, on.stream, arguments.data()),
          "cuLaunchCooperativeKernel");
    } else {
      check(on.functions.launch(function, grid[0], grid[1], grid[2], block, 1, 1, shared, on.stream, arguments.data(), nullptr),
            "cuLaunchKernel");
    }
  }
};

// out (rows, columns) (+)= op(a)·op(b), row-major. cuBLAS takes column-major matrices: outᵀ = op(b)ᵀ·op(a)ᵀ.
struct Multiply : Item {
  uint64_t a, b, out;
  int rows, columns, inner, a_columns, b_columns, dtype;
  bool transpose_a, transpose_b, accumulate;

  void play(const Addresses& at, const Stream& on) const override {
    if (dtype == RNN_FLOAT64) {
      multiply<double>(on.functions.multiply_double, at, on);
    } else {
      multiply<float>(on.functions.multiply_float, at, on);
    }
  }

  template <class Real, class Gemm>
  void multiply(Gemm gemm, const Addresses& at, const Stream& on) const {
    const Real one = 1, beta = accumulate;
    check(gemm(on.handle, transpose_b, transpose_a, columns, rows, inner, &one, reinterpret_cast<void*>(at(b)), b_columns,
               reinterpret_cast<void*>(at(a)), a_columns, &beta, reinterpret_cast<void*>(at(out)), columns),
          "cublas gemm");
  }
};

struct FillItem : Item {
  uint64_t to;
  unsigned char value;
  size_t bytes;
  void play(const Addresses& at, const Stream& on) const override {
    check(on.functions.fill(at(to), value, bytes, on.stream), "cuMemsetD8Async");
  }
};

struct Copy : Item {
  uint64_t to, from;
  size_t bytes;
  void play(const Addresses& at, const Stream& on) const override {
    check(on.functions.copy(at(to), at(from), bytes, on.stream), "cuMemcpyDtoDAsync");
  }
};

}  // namespace

// A program's key: Python gets it and records the program.
struct Signature {
  int64_t T, B, I, H;
  int32_t device, direction, dtype, tokens, activation, step;
  int32_t fills[RNN_ARGUMENTS];  // backward: rnn_fill of each gradient
};

struct Program {
  int64_t workspace = 0;  // bytes
  bool multiplies = false;
  std::vector<std::unique_ptr<Item>> items;
};

namespace {

// Fills the program and returns 0, or writes a sentence that says why it cannot.
using Record = int (*)(const Signature*, Program*, char* sentence, int room);

const size_t MOST_PROGRAMS = 1024;  // each length of a sequence needs its own. One more, and all are dropped.

Functions functions = {};
Record record = nullptr;

// Guards the two maps. Never held while Python runs.
std::mutex mutex;
std::map<std::string, std::shared_ptr<const Program>> programs;  // by the bytes of a Signature
std::map<std::pair<int, void*>, void*> handles;                  // of cuBLAS by GPU and stream

std::shared_ptr<const Program> program_for(const Signature& signature) {
  const std::string key(reinterpret_cast<const char*>(&signature), sizeof signature);
  {
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = programs.find(key);
    if (found != programs.end()) return found->second;
  }
  auto program = std::make_shared<Program>();
  char sentence[2000] = "";
  if (!record) {
    fail("inputs", "an array on gpu(" + std::to_string(signature.device) + ")",
         "one on cpu(), or a process in which Python has imported rnn_ops, which plans the work on GPUs");
  }
  if (record(&signature, program.get(), sentence, sizeof sentence)) throw Error{sentence};
  if (program->workspace > INT32_MAX) {
    fail("inputs", "a sequence with a workspace of " + std::to_string(program->workspace) + " bytes",
         "at most 2 GiB, MXNet's limit: use fewer steps or a smaller batch");
  }
  std::lock_guard<std::mutex> lock(mutex);
  if (programs.size() >= MOST_PROGRAMS) programs.clear();
  return programs[key] = program;
}

void* handle_for(const Call& call) {
  std::lock_guard<std::mutex> lock(mutex);
  void*& handle = handles[{call.device, call.stream}];
  if (!handle) {
    check(functions.create_handle(&handle), "cublasCreate");
    check(functions.set_stream(handle, call.stream), "cublasSetStream");
  }
  return handle;
}

Signature signature_of(const Call& call) {
  Signature signature;
  memset(&signature, 0, sizeof signature);
  const Problem of = problem(call);
  signature.T = of.T;
  signature.B = of.B;
  signature.I = of.I;
  signature.H = of.H;
  signature.device = call.device;
  signature.direction = call.gradients ? RNN_BACKWARD : RNN_FORWARD;
  signature.dtype = of.dtype;
  signature.tokens = of.tokens;
  signature.activation = call.chosen.activation;
  signature.step = call.chosen.step;
  for (int i = 0; call.gradients && i < RNN_ARGUMENTS; ++i) signature.fills[i] = fill_of_gradient(call.chosen, of, i);
  return signature;
}

void play(const Call& call) {
  const auto program = program_for(signature_of(call));
  Addresses at;
  for (int i = 0; i < RNN_ARGUMENTS; ++i) at.set(i, call.arguments[i].data);
  at.set(RNN_OUTPUTS, call.results[0].data);
  if (!call.chosen.step) at.set(RNN_LAST_STATE, call.results[1].data);
  if (call.gradients) {
    at.set(RNN_DOUTPUTS, call.cotangents[0].data);
    if (!call.chosen.step) at.set(RNN_DLAST_STATE, call.cotangents[1].data);
    for (int i = 0; i < RNN_ARGUMENTS; ++i) at.set(RNN_DINPUTS + i, call.gradients[i].data);
  }
  if (program->workspace) at.set(RNN_WORKSPACE, call.allocate(call.allocator, static_cast<int>(program->workspace)));
  const Stream on = {call.stream, program->multiplies ? handle_for(call) : nullptr, functions};
  for (const auto& item : program->items) item->play(at, on);
}

template <class Kind>
Kind* add(Program* program) {
  Kind* item = new Kind;
  program->items.emplace_back(item);
  return item;
}

}  // namespace

void gpu_forward(const Call& call) { play(call); }
void gpu_backward(const Call& call) { play(call); }

}  // namespace rnn_ops

// gpu.py calls the first two functions before the first program, and the rnn_ops_program_* inside a Record, to fill one.

using rnn_ops::Program;

RNN_OPS_EXPORT void rnn_ops_native_use_recorder(rnn_ops::Record record) { rnn_ops::record = record; }

RNN_OPS_EXPORT void rnn_ops_native_use_gpu(const rnn_ops::Functions* functions) { rnn_ops::functions = *functions; }

// For tests, which replace the devices.
RNN_OPS_EXPORT void rnn_ops_native_forget_programs() {
  std::lock_guard<std::mutex> lock(rnn_ops::mutex);
  rnn_ops::programs.clear();
  rnn_ops::handles.clear();
}

RNN_OPS_EXPORT void rnn_ops_program_workspace(Program* program, int64_t bytes) { program->workspace = bytes; }

// values: `bytes` bytes of arguments. begins, addresses: the offsets of the `count` arguments and of the `address_count`
// addresses.
RNN_OPS_EXPORT void rnn_ops_program_launch(Program* program, void* function, const uint32_t* grid, uint32_t block,
                                           uint32_t shared, int cooperative, const char* values, uint32_t bytes,
                                           const uint32_t* begins, int count, const uint32_t* addresses, int address_count) {
  auto* item = rnn_ops::add<rnn_ops::Launch>(program);
  item->function = function;
  memcpy(item->grid, grid, sizeof item->grid);
  item->block = block;
  item->shared = shared;
  item->cooperative = cooperative;
  item->values.assign(values, values + bytes);
  item->begins.assign(begins, begins + count);
  item->addresses.assign(addresses, addresses + address_count);
}

RNN_OPS_EXPORT void rnn_ops_program_multiply(Program* program, uint64_t a, uint64_t b, uint64_t out, int rows, int columns,
                                             int inner, int a_columns, int b_columns, int transpose_a, int transpose_b,
                                             int accumulate, int dtype) {
  auto* item = rnn_ops::add<rnn_ops::Multiply>(program);
  item->a = a;
  item->b = b;
  item->out = out;
  item->rows = rows;
  item->columns = columns;
  item->inner = inner;
  item->a_columns = a_columns;
  item->b_columns = b_columns;
  item->transpose_a = transpose_a;
  item->transpose_b = transpose_b;
  item->accumulate = accumulate;
  item->dtype = dtype;
  program->multiplies = true;
}

RNN_OPS_EXPORT void rnn_ops_program_fill(Program* program, uint64_t to, unsigned char value, uint64_t bytes) {
  auto* item = rnn_ops::add<rnn_ops::FillItem>(program);
  item->to = to;
  item->value = value;
  item->bytes = bytes;
}

RNN_OPS_EXPORT void rnn_ops_program_copy(Program* program, uint64_t to, uint64_t from, uint64_t bytes) {
  auto* item = rnn_ops::add<rnn_ops::Copy>(program);
  item->to = to;
  item->from = from;
  item->bytes = bytes;
}
