"""The smallest whole mx.operator.CustomOp: one step of the recurrence, h = tanh(x·Wxh + state·Whh + bh), in NumPy.

    python examples/minimal_custom_op.py        prints the relative error of each gradient

rnn_ops/operators/custom.py is the same with sequences, tokens, GPUs and errors.
"""
import numpy as np

import rnn_ops  # before mxnet, which then imports on NumPy 1.24-1.26 too

import mxnet as mx


class Step(mx.operator.CustomOp):
    def forward(self, is_train, req, in_data, out_data, aux):
        x, state, Wxh, Whh, bh = (array.asnumpy() for array in in_data)
        # req says how MXNet wants a result: "null" not at all, "write" or "inplace" stored, "add" added. assign follows it.
        self.assign(out_data[0], req[0], mx.nd.array(np.tanh(x @ Wxh + state @ Whh + bh), dtype=x.dtype))

    def backward(self, req, out_grad, in_data, out_data, in_grad, aux):
        x, state, Wxh, Whh, _ = (array.asnumpy() for array in in_data)
        da = out_grad[0].asnumpy() * (1 - out_data[0].asnumpy() ** 2)  # gradient of what goes into tanh: tanh' = 1 - tanh²
        gradients = da @ Wxh.T, da @ Whh.T, x.T @ da, state.T @ da, da.sum(axis=0)
        for array, how, gradient in zip(in_grad, req, gradients):
            self.assign(array, how, mx.nd.array(gradient, dtype=da.dtype))


@mx.operator.register("minimal_step")
class StepProp(mx.operator.CustomOpProp):
    """MXNet asks it for names, shapes and types, also in a graph that has no data yet."""

    def list_arguments(self):
        return ["x", "state", "Wxh", "Whh", "bh"]

    def infer_shape(self, in_shape):
        (B, inputs), H = in_shape[0], in_shape[1][1]
        return [(B, inputs), (B, H), (inputs, H), (H, H), (H,)], [(B, H)]

    def create_operator(self, ctx, in_shapes, in_dtypes):
        return Step()


def check():
    """{argument: the relative error of its gradient along a random direction, against central differences in float64}"""
    mx.random.seed(0)
    shapes = {"x": (3, 5), "state": (3, 4), "Wxh": (5, 4), "Whh": (4, 4), "bh": (4,)}
    arguments = {name: mx.nd.random.normal(shape=shape, dtype="float64") for name, shape in shapes.items()}
    weights = mx.nd.random.normal(shape=(3, 4), dtype="float64")

    def loss():
        return (mx.nd.Custom(*arguments.values(), op_type="minimal_step") * weights).sum()

    for argument in arguments.values():
        argument.attach_grad(grad_req="add")
    for _ in range(2):  # twice, so each gradient is the double
        with mx.autograd.record():
            value = loss()
        value.backward()
    errors = {}
    for name, argument in arguments.items():
        start, direction = argument.copy(), mx.nd.random.normal(shape=argument.shape, dtype="float64")
        argument[:] = start + 1e-6 * direction
        above = loss().asscalar()
        argument[:] = start - 1e-6 * direction
        numeric = (above - loss().asscalar()) / 2e-6
        argument[:] = start
        errors[name] = abs((argument.grad * direction).sum().asscalar() / 2 / numeric - 1)
    return errors


if __name__ == "__main__":
    print(check())
