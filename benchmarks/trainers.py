"""Providers of the whole training step: the tutorial's own loop, ours, and the same model of MXNet's and PyTorch's layers.

They are providers (see providers.py) with one direction, "training step". Every call makes some steps, on a batch each, and
goes on from the last parameters and state; the first call is verified.
"""
import numpy as np

from rnn_ops import numpy_reference

from . import providers
from .problems import LEARNING_RATE, TRAINING
from .providers import Provider, Row

MODE = TRAINING


def _results_of_parameters(loss, parameters):
    """loss: the last one. parameters: five NDArrays by name."""
    results = {"loss": np.array([loss])}
    for name, parameter in parameters.items():
        results[name] = parameter.asnumpy()
        results["d" + name] = parameter.grad.asnumpy()
    return results


class _Learner(Provider):
    """``rnn-ops train``: its loop over some batches of one epoch, with a function in it that has ``rnn_sequence``'s signature."""

    def __init__(self, problem, load):
        from rnn_ops._mxnet import mx
        self.mx = mx
        self.about = f"mxnet {mx.__version__}"
        self.learner = self._learner(problem.parameters, load)
        self.tokens, self.labels = (mx.nd.array(a, dtype="int32") for a in (problem.tokens, problem.labels))
        self.calls = {TRAINING: self._steps}

    def _learner(self, parameters, load):
        from rnn_ops_timemachine import training
        return training.Learner(parameters, load())

    def _steps(self):
        *_, self.loss = self.learner.train_epoch(self.tokens, self.labels, LEARNING_RATE)
        self.mx.nd.waitall()

    def results(self, direction):
        return _results_of_parameters(self.loss, self.learner.parameters._asdict())


class _GluonLearner(_Learner):
    """The same with our layer in a Gluon network, Gluon's own loss and trainer."""

    def _learner(self, parameters, load):
        from rnn_ops_timemachine import network
        return network.Learner(parameters)

    def results(self, direction):
        network, parameters = self.learner.network, self.learner.arrays()
        return dict(parameters, loss=np.array([self.loss]), **_gluon_gradients(network.rnn, network.output))


Ours, OursCustom, OursGluon = (
    Row(*recurrence[:3], make, arguments) for recurrence, make, arguments in (
        (providers.Native, _Learner, (providers.native,)), (providers.CustomOp, _Learner, (providers.custom,)),
        (providers.OurGluon, _GluonLearner, (None,))))


class Tutorial(Provider):
    """The tutorial's loop as it stands: every operation once a step, one-hot inputs and labels made beforehand."""
    name = providers.NDArrayLoop.name
    process = providers.NDArrayLoop.process
    packages = providers.NDArrayLoop.packages

    def __init__(self, problem):
        from rnn_ops import reference
        from rnn_ops._mxnet import mx
        from rnn_ops_timemachine import model
        self.mx, self.reference = mx, reference
        self.about = f"mxnet {mx.__version__}"
        self.parameters = model.trainable(problem.parameters)
        V = problem.shape.I
        self.batches = [[mx.nd.one_hot(mx.nd.array(a, dtype="int32"), V) for a in batch]
                        for batch in zip(problem.tokens, problem.labels)]
        self.state = mx.nd.array(problem.state)
        self.calls = {TRAINING: self._steps}

    def _steps(self):
        for inputs, labels in self.batches:
            with self.mx.autograd.record():
                loss, state = self._loss(inputs, labels)
            loss.backward()
            self.reference.sgd(self.parameters, LEARNING_RATE)
            self.state = state.detach()
            self.loss = loss.asscalar()
        self.mx.nd.waitall()

    def _loss(self, inputs, labels):
        return self.reference.language_model_loss(inputs, labels, self.state, *self.parameters)

    def results(self, direction):
        return _results_of_parameters(self.loss, self.parameters._asdict())


class Gluon(Provider):
    """mx.gluon.rnn.RNN and a dense layer in one hybridized block, Gluon's own loss and trainer, one-hot input."""
    name = providers.GluonRNN.name
    process = providers.GluonRNN.process
    packages = providers.GluonRNN.packages

    def __init__(self, problem):
        from rnn_ops._mxnet import mx
        self.mx = mx
        self.about = f"mxnet {mx.__version__}"
        p = problem.parameters
        shape = problem.shape

        class Model(mx.gluon.HybridBlock):
            def __init__(self):
                super().__init__()
                with self.name_scope():
                    self.rnn = providers.gluon_rnn(mx, mx.gluon.rnn.RNN, shape.I, shape.H, p["Wxh"], p["Whh"], p["bh"])
                    self.output = mx.gluon.nn.Dense(shape.I, flatten=False, in_units=shape.H)

            def hybrid_forward(self, F, inputs, state):
                outputs, (state,) = self.rnn(inputs, [state])
                return self.output(outputs), state

        self.model = Model()
        self.model.rnn.l0_h2h_bias.grad_req = "null"  # the model has one bias; two would learn twice as fast
        self.model.output.initialize()
        self.model.output.weight.set_data(mx.nd.array(p["Why"].T))
        self.model.output.bias.set_data(mx.nd.array(p["by"]))
        self.model.hybridize(static_alloc=True, static_shape=True)
        self.cross_entropy = mx.gluon.loss.SoftmaxCrossEntropyLoss()
        self.cross_entropy.hybridize(static_alloc=True, static_shape=True)
        self.trainer = mx.gluon.Trainer(self.model.collect_params(), "sgd", {"learning_rate": LEARNING_RATE})
        self.batches = [(mx.nd.array(numpy_reference.one_hot(tokens, shape.I)), mx.nd.array(labels))
                        for tokens, labels in zip(problem.tokens, problem.labels)]
        self.state = mx.nd.array(problem.state).expand_dims(0)
        self.calls = {TRAINING: self._steps}

    def _steps(self):
        for inputs, labels in self.batches:
            with self.mx.autograd.record():
                logits, state = self.model(inputs, self.state)
                loss = self.cross_entropy(logits, labels).mean()
            loss.backward()
            self.trainer.step(1)
            self.state = state.detach()
            self.loss = loss.asscalar()
        self.mx.nd.waitall()

    def results(self, direction):
        rnn, output = self.model.rnn, self.model.output
        return dict(
            _gluon_gradients(rnn, output),
            loss=np.array([self.loss]),
            Wxh=rnn.l0_i2h_weight.data().asnumpy().T, Whh=rnn.l0_h2h_weight.data().asnumpy().T,
            bh=rnn.l0_i2h_bias.data().asnumpy(),
            Why=output.weight.data().asnumpy().T, by=output.bias.data().asnumpy())


def _gluon_gradients(rnn, output):
    return dict(providers.gluon_rnn_gradients(rnn),
                dWhy=output.weight.grad().asnumpy().T, dby=output.bias.grad().asnumpy())


class _Torch(Provider):
    """torch.nn.RNN, or ours instead of it, and torch.nn.Linear, PyTorch's own loss and optimizer, one-hot input."""

    def __init__(self, problem, ours=False):
        import torch
        layer_class = torch.nn.RNN
        if ours:
            from rnn_ops.torch import RNN as layer_class
        self.torch = torch
        self.about = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
        p = problem.parameters
        shape = problem.shape
        self.rnn = providers.torch_rnn(torch, layer_class, shape.I, shape.H, p["Wxh"], p["Whh"], p["bh"])
        self.output = torch.nn.Linear(shape.H, shape.I)
        with torch.no_grad():
            self.output.weight.copy_(torch.tensor(p["Why"].T))
            self.output.bias.copy_(torch.tensor(p["by"]))
        self.rnn.bias_hh_l0.requires_grad_(False)  # the model has one bias; two would learn twice as fast
        learning = [p for module in (self.rnn, self.output) for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(learning, lr=LEARNING_RATE)
        self.batches = [(torch.tensor(numpy_reference.one_hot(tokens, shape.I)),
                         torch.tensor(labels, dtype=torch.int64).flatten())
                        for tokens, labels in zip(problem.tokens, problem.labels)]
        self.state = torch.tensor(problem.state[np.newaxis])
        self.calls = {TRAINING: self._steps}

    def _steps(self):
        for inputs, labels in self.batches:
            self.optimizer.zero_grad()
            outputs, state = self.rnn(inputs, self.state)
            loss = self.torch.nn.functional.cross_entropy(self.output(outputs).flatten(0, 1), labels)
            loss.backward()
            self.optimizer.step()
            self.state = state.detach()
            self.loss = loss.item()

    def results(self, direction):
        rnn, output = self.rnn, self.output
        results = dict(
            Wxh=rnn.weight_ih_l0.T, Whh=rnn.weight_hh_l0.T, bh=rnn.bias_ih_l0, Why=output.weight.T, by=output.bias,
            dWhy=output.weight.grad.T, dby=output.bias.grad)
        results = {name: tensor.detach().numpy() for name, tensor in results.items()}
        return dict(results, **providers.torch_rnn_gradients(rnn), loss=np.array([self.loss]))


OursTorch = Row(*providers.OurTorchRNN[:3], _Torch, (True,))
Torch = Row(*providers.TorchRNN[:3], _Torch)

TRAINERS = (Ours, OursCustom, OursGluon, OursTorch, Gluon, Torch, Tutorial)
