// The two passes on arrays of the CPU: each is one call of the CPU kernels.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "operator.h"
#include "rnn_cpu.h"

namespace rnn_ops {
namespace {

template <class Args>
void set_problem(Args* args, const Problem& of, const Call& call) {
  args->T = of.T;
  args->B = of.B;
  args->I = of.I;
  args->H = of.H;
  args->dtype = of.dtype;
  args->activation = call.chosen.activation;
  void* inputs = call.arguments[RNN_INPUTS].data;
  if (of.tokens) {
    args->tokens = static_cast<const int32_t*>(inputs);
  } else {
    args->x = inputs;
  }
}

std::string quoted_setting(const char* name) {
  const char* value = getenv(name);
  return std::string("'") + (value ? value : "") + "'";
}

template <class Args>
void check_status(int status, const Args& args, bool step) {
  if (status == RNN_BAD_TOKEN) {
    const int64_t t = args.bad_token / args.B, b = args.bad_token % args.B, bound = args.I;
    const std::string where = (step ? "" : std::to_string(t) + ", ") + std::to_string(b);
    fail("inputs", "token " + std::to_string(args.tokens[args.bad_token]) + " at [" + where + "]",
         "0 <= token < " + std::to_string(bound) + ", I = " + std::to_string(bound) + " from Wxh");
  }
  if (status == RNN_BAD_THREADS) {
    fail("RNN_OPS_NUM_THREADS", quoted_setting("RNN_OPS_NUM_THREADS"), "a number of threads, 1 or more, at most 65,536");
  }
  if (status == RNN_BAD_SIMD) {
    fail("RNN_OPS_SIMD", quoted_setting("RNN_OPS_SIMD"), std::string("one of ") + rnn_cpu_simd_levels());
  }
  if (status != RNN_OK) throw Error{"no memory for packed copies of Wxh and Whh"};
}

// Whether a gradient shares memory with another gradient or with an array that the call reads. Users may do this, as in
// h.backward(state.grad).
bool goes_over(const Array& gradient, const Call& call, size_t item) {
  const auto over = [&](const Array& array) { return overlap(gradient, array, item); };
  const int results = call.chosen.results();
  for (int i = 0; i < RNN_ARGUMENTS; ++i) {
    if (&call.gradients[i] < &gradient && over(call.gradients[i])) return true;
  }
  return std::any_of(call.arguments, call.arguments + RNN_ARGUMENTS, over) ||
         std::any_of(call.results, call.results + results, over) || std::any_of(call.cotangents, call.cotangents + results, over);
}

}  // namespace

void cpu_forward(const Call& call) {
  const Problem of = problem(call);
  rnn_cpu_forward_args args = {};
  set_problem(&args, of, call);
  args.h0 = call.arguments[RNN_STATE].data;
  args.Wxh = call.arguments[RNN_WXH].data;
  args.Whh = call.arguments[RNN_WHH].data;
  args.bh = call.arguments[RNN_BH].data;
  args.h = call.results[0].data;
  check_status(rnn_cpu_forward(&args), args, call.chosen.step);
  if (!call.chosen.step) {
    const size_t bytes = of.B * of.H * of.item();
    memcpy(call.results[1].data, static_cast<char*>(args.h) + (of.T - 1) * bytes, bytes);
  }
}

void cpu_backward(const Call& call) {
  const Problem of = problem(call);
  rnn_cpu_backward_args args = {};
  set_problem(&args, of, call);
  args.h0 = call.arguments[RNN_STATE].data;
  args.Wxh = call.arguments[RNN_WXH].data;
  args.Whh = call.arguments[RNN_WHH].data;
  args.h = call.results[0].data;
  args.dh = call.cotangents[0].data;
  args.dh_last = call.chosen.step ? nullptr : call.cotangents[1].data;
  // MXNet's workspace, since fresh memory costs a page fault every 4 KiB. Its size is an int, so large ones are our own.
  const size_t bytes = of.T * of.B * of.H * of.item();
  std::unique_ptr<char[]> own;
  if (bytes <= INT32_MAX) {
    args.da = call.allocate(call.allocator, static_cast<int>(bytes));
  } else {
    own.reset(new char[bytes]);
    args.da = own.get();
  }
  void* gradients[RNN_ARGUMENTS];
  std::unique_ptr<char[]> apart[RNN_ARGUMENTS];  // computed here and copied to its array at the end
  for (int i = 0; i < RNN_ARGUMENTS; ++i) {
    const Array& gradient = call.gradients[i];
    gradients[i] = nullptr;
    if (call.chosen.hidden[i]) continue;
    const rnn_fill fill = fill_of_gradient(call.chosen, of, i);
    if (fill != RNN_COMPUTE) continue;  // filled below, when nothing is read any more
    if (goes_over(gradient, call, of.item())) {
      apart[i].reset(new char[gradient.size() * of.item()]);
      gradients[i] = apart[i].get();
    } else {
      gradients[i] = gradient.data;
    }
  }
  args.dx = gradients[RNN_INPUTS];
  args.dh0 = gradients[RNN_STATE];
  args.dWxh = gradients[RNN_WXH];
  args.dWhh = gradients[RNN_WHH];
  args.dbh = gradients[RNN_BH];
  check_status(rnn_cpu_backward(&args), args, call.chosen.step);
  for (int i = 0; i < RNN_ARGUMENTS; ++i) {
    const Array& gradient = call.gradients[i];
    const rnn_fill fill = call.chosen.hidden[i] ? RNN_COMPUTE : fill_of_gradient(call.chosen, of, i);
    if (fill != RNN_COMPUTE)
      memset(gradient.data, fill, gradient.size() * (i == RNN_INPUTS && of.tokens ? sizeof(int32_t) : of.item()));
    if (apart[i]) memcpy(gradient.data, apart[i].get(), gradient.size() * of.item());
  }
}

}  // namespace rnn_ops
