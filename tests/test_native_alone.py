"""The library given to MXNet alone, in processes that know nothing of rnn_ops: exported networks run, in Python and by the C
predict API; however often it is loaded; what it says of arrays on a GPU.
"""
import json
import os
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest

import rnn_ops
from rnn_ops import gluon
from rnn_ops._mxnet import mx
from rnn_ops.backends import cpu
from rnn_ops.operators import native
from rnn_ops.operators.native import load

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

T, B, I, H = 6, 4, 9, 33
# MXNet without rnn_ops, and the library in it.
ALONE = """
import sys, numpy as np
lend = "bool" not in vars(np)
if lend:
    np.bool = np.bool_
import mxnet as mx
if lend:
    del np.bool
folder, library = sys.argv[1:3]
mx.library.load(library, verbose=False)
"""
CLEAN = "assert not [name for name in sys.modules if name.startswith('rnn_ops')]\n"


class Language(mx.gluon.HybridBlock):
    """A network of tokens, which come as floats as the C predict API has them."""

    def __init__(self):
        super().__init__()
        with self.name_scope():
            self.rnn = gluon.TokenRNN(H, num_layers=2, activation="tanh", input_size=I)
            self.decoder = mx.gluon.nn.Dense(I, flatten=False)

    def hybrid_forward(self, F, inputs, *states):
        return self.decoder(self.rnn(F.cast(inputs, "int32")))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A folder with an exported network of tokens, inputs, its outputs and gradients; a symbol of the operator, its arguments and
    outputs; and the library."""
    folder = tmp_path_factory.mktemp("network")
    random = np.random.RandomState(0)
    net = Language()
    net.initialize(mx.init.Normal(0.5))
    net.hybridize()
    inputs = mx.nd.array(random.randint(0, I, (T, B)))
    with mx.autograd.record():
        outputs = net(inputs)
    outputs.backward()
    net.export(str(folder / "net"))
    np.savez(str(folder / "net.npz"), inputs=inputs.asnumpy(), outputs=outputs.asnumpy(),
             gradient=net.rnn.l0_i2h_weight.grad().asnumpy())
    arguments = {name: random.uniform(-1, 1, shape).astype("float32") for name, shape in zip(
        ("inputs", "state", "Wxh", "Whh", "bh"), [(T, B, I), (B, H), (I, H), (H, H), (H,)])}
    variables = [mx.sym.var(name, shape=None if name == "inputs" else array.shape) for name, array in arguments.items()]
    mx.sym.Group(rnn_ops.rnn_sequence(*variables)).save(str(folder / "sequence.json"))
    outputs = np.empty((T, B, H), "float32")
    cpu.forward(*arguments.values(), outputs)
    np.savez(str(folder / "sequence.npz"), **arguments)
    np.save(str(folder / "sequence.npy"), outputs)
    shutil.copy(native.library_path(), str(folder / "library.so"))
    return folder


def run(code, folder, library, status=0):
    """What a fresh Python prints, in a folder that is not the package's."""
    done = subprocess.run([sys.executable, "-c", code, str(folder), str(library)], cwd=str(folder), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == status, done.stdout
    return done.stdout


@pytest.mark.parametrize("copied", [False, True], ids=["in the package", "copied elsewhere"])
def test_an_exported_network_runs_and_trains(network, copied):
    code = ALONE + """
net = mx.gluon.SymbolBlock.imports(folder + "/net-symbol.json", ["data"], folder + "/net-0000.params")
wanted = np.load(folder + "/net.npz")
for flags in [], [dict(static_alloc=True)]:
    for each in flags:
        net.hybridize(**each)
    with mx.autograd.record():
        outputs = net(mx.nd.array(wanted["inputs"]))
    outputs.backward()
    gradient, = [p for name, p in net.collect_params().items() if name.endswith("l0_i2h_weight")]
    assert np.allclose(outputs.asnumpy(), wanted["outputs"], atol=1e-5)
    assert np.allclose(gradient.grad().asnumpy(), wanted["gradient"], atol=1e-5)
""" + CLEAN
    run(code, network, network / "library.so" if copied else native.library_path())


def test_a_module_binds_a_saved_symbol(network):
    code = ALONE + """
values = np.load(folder + "/sequence.npz")
module = mx.mod.Module(mx.sym.load(folder + "/sequence.json"), data_names=["inputs"], label_names=None)
module.bind([("inputs", values["inputs"].shape)], for_training=False)
module.init_params(arg_params={name: mx.nd.array(values[name]) for name in ("state", "Wxh", "Whh", "bh")})
module.forward(mx.io.DataBatch([mx.nd.array(values["inputs"])]))
assert np.array_equal(module.get_outputs()[0].asnumpy(), np.load(folder + "/sequence.npy"))
""" + CLEAN
    run(code, network, network / "library.so")


def test_the_c_predict_api_runs_it(network):
    """Python here stands for any language: it makes calls of libmxnet.so, and imports no mxnet."""
    code = """
import ctypes, json, sys, numpy as np
folder, library, mxnet = *sys.argv[1:3], MXNET
lib = ctypes.CDLL(mxnet)
lib.MXGetLastError.restype = ctypes.c_char_p
def call(name, *arguments):
    assert getattr(lib, name)(*arguments) == 0, lib.MXGetLastError().decode()
call("MXLoadLib", library.encode(), 0)
wanted = np.load(folder + "/net.npz")
symbol, weights = (open(folder + name, "rb").read() for name in ("/net-symbol.json", "/net-0000.params"))
predictor, shape = ctypes.c_void_p(), wanted["inputs"].shape
call("MXPredCreate", symbol, weights, len(weights), 1, 0, 1, (ctypes.c_char_p * 1)(b"data"), (ctypes.c_uint * 2)(0, len(shape)),
     (ctypes.c_uint * len(shape))(*shape), ctypes.byref(predictor))
inputs, outputs = wanted["inputs"].astype("float32"), np.empty(wanted["outputs"].shape, "float32")
for _ in range(3):
    call("MXPredSetInput", predictor, b"data", inputs.ctypes.data_as(ctypes.c_void_p), inputs.size)
    call("MXPredForward", predictor)
    call("MXPredGetOutput", predictor, 0, outputs.ctypes.data_as(ctypes.c_void_p), outputs.size)
    assert np.allclose(outputs, wanted["outputs"], atol=1e-5)
call("MXPredFree", predictor)
assert not [name for name in sys.modules if name.split(".")[0] in ("mxnet", "rnn_ops")]
"""
    run(code.replace("MXNET", repr(mx.base._LIB._name)), network, network / "library.so")


RUN = """
def check():
    values = {name: mx.nd.array(array) for name, array in np.load(folder + "/sequence.npz").items()}
    outputs = mx.sym.load(folder + "/sequence.json").bind(mx.cpu(), values).forward()[0].asnumpy()
    assert np.array_equal(outputs, np.load(folder + "/sequence.npy"))
    maps = [line.split()[-1] for line in open("/proc/self/maps")] if sys.platform == "linux" else [library]
    assert {name for name in maps if name.endswith(("librnn_ops.so", "library.so"))} == {library}
"""
AGAIN = "mx.library.load(library, verbose=False); check()\n"
IMPORT = """
import rnn_ops
from rnn_ops.operators import in_use, native
assert native.why_not() is None and in_use() == "native"
check()
"""


@pytest.mark.parametrize("steps", [
    "check()\n" + AGAIN + AGAIN + AGAIN, IMPORT, IMPORT + AGAIN + AGAIN, AGAIN + IMPORT + AGAIN],
    ids=["again and again", "then imported", "imported, then loaded", "in between"])
def test_it_may_be_loaded_more_than_once(network, steps):
    """One library in memory, so one set of threads."""
    run(ALONE + RUN + steps, network, native.library_path())


def test_two_copies_get_along(network):
    """One beside an exported network, and the package's own."""
    run(ALONE + RUN.replace("== {library}", ">= {library}") + "check()\n" + IMPORT, network, network / "library.so")


def test_a_process_may_end_in_the_middle_of_a_call(network):
    code = ALONE + """
values = {name: mx.nd.array(array) for name, array in np.load(folder + "/sequence.npz").items()}
values["inputs"], values["state"] = mx.nd.ones((3000, BATCH, INPUTS)), mx.nd.ones((BATCH, STATE))
executor = mx.sym.load(folder + "/sequence.json").bind(mx.cpu(), values)
for _ in range(20):
    executor.forward()
""".replace("BATCH", str(B)).replace("INPUTS", str(I)).replace("STATE", str(H))
    assert "Error" not in run(code, network, network / "library.so")


def test_mxnet_says_that_it_was_not_loaded(network):
    code = ALONE.replace("mx.library.load(library, verbose=False)", "") + 'mx.sym.load(folder + "/sequence.json")\n'
    assert "Operator rnn_ops_native is not registered" in run(code, network, network / "library.so", status=1)


def test_its_path_is_known_without_mxnet(tmp_path):
    code = "import sys; from rnn_ops.backends import cpu; print(cpu.library_path(), 'mxnet' in sys.modules)"
    assert run(code, tmp_path, "") == f"{native.library_path()} False\n"
    assert os.path.isabs(native.library_path())


def test_graphs_of_earlier_versions_are_read(network):
    """They have bh as a row and no node for the number of dimensions."""
    graph = json.loads((network / "sequence.json").read_text())
    operator = next(node for node in graph["nodes"] if node["op"] == "rnn_ops_native" and len(node["inputs"]) == 6)
    row = dict(op="expand_dims", name="row", attrs=dict(axis="0"), inputs=[operator["inputs"][4]])
    at = graph["nodes"].index(operator)
    operator["attrs"] = dict(step="0", activation="tanh", row="1")
    operator["inputs"] = [*operator["inputs"][:4], [at, 0, 0]]
    graph["nodes"].insert(at, row)
    graph["heads"] = [[at + 1, result, 0] for result in (0, 1)]
    for name in "node_row_ptr", "attrs":
        graph.pop(name)
    values = {name: mx.nd.array(array) for name, array in np.load(str(network / "sequence.npz")).items()}
    found = mx.sym.load_json(json.dumps(graph)).bind(mx.cpu(), values).forward()[0].asnumpy()
    assert np.array_equal(found, np.load(str(network / "sequence.npy")))


def test_arrays_on_a_gpu_need_python():
    from test_native_gpu import Native, NativeError, library
    arrays = [np.zeros(shape, "float32") for shape in [(T, B, I), (B, H), (I, H), (H, H), (H,)]]
    library.rnn_ops_native_use_recorder(None)
    library.rnn_ops_native_forget_programs()
    try:
        with pytest.raises(NativeError, match=r"inputs: got an array on gpu\(1\), needs one on cpu\(\), or a process in which "
                                              "Python has imported rnn_ops"):
            Native(types.SimpleNamespace(emulators={}), device=1).forward(*arrays, np.empty((T, B, H), "float32"))
    finally:
        library.rnn_ops_native_use_recorder(load.operator.programs._record)
