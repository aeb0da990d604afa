"""What C++, CUDA and Python agree on: the numbers of kernels/codes.h and the layouts of the structures that they share."""
import ctypes
import importlib
import os
import re
import subprocess

import pytest

from cuda_host import text_of
from rnn_ops.backends import arguments, codes, cpu
from rnn_ops.backends.cuda import launcher, sources

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
COMPILER = os.environ.get("CXX", "g++").split()
FOLDERS = [os.path.join(ROOT, *parts) for parts in (("kernels", "cpu"), ("kernels", "cuda"), ("rnn_ops", "operators", "native"),
                                                    ("tests", "cuda_host"))]


def header(text=None):
    """{name of an enum: {enumerator without RNN_: number}} of kernels/codes.h; the enum without a name is "counts"."""
    if text is None:
        with open(os.path.join(ROOT, "kernels", "codes.h"), encoding="utf-8") as file:
            text = file.read()
    text = re.sub(r"//.*", "", text)
    return {name.replace("rnn_", "") or "counts": {item: int(number, 0) for item, number in
                                                   re.findall(r"RNN_(\w+) = (-?\w+)", body)}
            for name, body in re.findall(r"enum (\w* ?)\{(.*?)\}", text.replace("enum {", "enum  {"), re.S)
            for name in [name.strip()]}


def numbers(names):
    return {name.upper(): number for number, name in enumerate(names)}


def test_every_number_is_the_same_in_python():
    in_python = {
        "dtype": {dtype.name.upper(): number for dtype, number in codes.DTYPES.items()},
        "activation": {name.upper(): number for name, number in codes.ACTIVATIONS.items()},
        "direction": {"FORWARD": codes.FORWARD, "BACKWARD": codes.BACKWARD},
        "status": {name: getattr(codes, name) for name in ("OK", "BAD_TOKEN", "NO_MEMORY", "BAD_THREADS", "BAD_SIMD")},
        "region": numbers(codes.REGIONS),
        "fill": {name: getattr(codes, name) for name in ("COMPUTE", "ZEROS", "NANS")},
        "counts": {"ACTIVATIONS": len(codes.ACTIVATIONS), "ARGUMENTS": len(codes.ARGUMENTS), "REGIONS": len(codes.REGIONS)},
    }
    assert header() == in_python


def test_the_arguments_are_the_first_regions_and_their_gradients_have_their_order():
    assert arguments.NAMES == codes.ARGUMENTS == codes.REGIONS[:5]
    assert [name[1:] for name in codes.GRADIENTS] == list(codes.ARGUMENTS)


def test_names_stand_at_their_numbers():
    """For Python looks up names by number too."""
    assert [codes.ACTIVATIONS[name] for name in arguments.ACTIVATIONS] == [0, 1]
    assert [codes.DTYPES[dtype] for dtype in arguments.FLOATS] == [0, 1]


def test_the_operator_in_cpp_has_the_same_names():
    with open(os.path.join(ROOT, "rnn_ops", "operators", "native", "inference.cc"), encoding="utf-8") as file:
        lists = dict(re.findall(r"const char\* const (\w+)\[RNN_\w+\] = \{(.*)\};", file.read()))
    names = {name: tuple(re.findall(r'"(\w+)"', words)) for name, words in lists.items()}
    assert names == {"NAMES": codes.ARGUMENTS, "ACTIVATIONS": tuple(codes.ACTIVATIONS)}


def test_the_header_is_a_part_of_the_kernels_text_and_of_the_package():
    with open(os.path.join(sources.folder(), "codes.h"), encoding="utf-8") as file:
        installed = file.read()
    with open(os.path.join(ROOT, "kernels", "codes.h"), encoding="utf-8") as file:
        assert file.read() == installed
    changed = installed.replace("RNN_RELU = 1", "RNN_RELU = 2")
    assert header(changed) != header()
    for family in "resident", "cluster", "grid", "stepwise":
        assert "RNN_RELU = 1" in sources.text(family)
        assert sources.text(family, {"codes.h": changed}) != sources.text(family)


PASSES = "#define NAME kernel\n#define PASS Forward<float>\n#define REAL float\n#include \"device.h\"\n" + text_of("stepwise")
STRUCTURES = [
    ('#include "rnn_cpu.h"', "rnn_cpu_forward_args", lambda: cpu._ForwardArgs),
    ('#include "rnn_cpu.h"', "rnn_cpu_backward_args", lambda: cpu._BackwardArgs),
    (PASSES, "Forward<float>", lambda: launcher._Forward),
    (PASSES, "Backward<float>", lambda: launcher._Backward),
    ('#include "gpu.cc"', "rnn_ops::Signature", lambda: native("gpu")._Signature),
    ('#include "gpu.cc"', "rnn_ops::Functions", lambda: native("gpu")._Functions),
]


def native(module):
    pytest.importorskip("mxnet")
    return importlib.import_module("rnn_ops.operators.native." + module)


def compiled(include, name, layout):
    """The compiler's words about a structure in C++ that must have this layout; "" if it has."""
    same = [f"static_assert(sizeof(S) == {ctypes.sizeof(layout)}, \"size\");"]
    for field, _ in layout._fields_:
        offset = getattr(layout, field).offset
        size = getattr(layout, field).size
        same.append(f"static_assert(offsetof(S, {field}) == {offset} && sizeof(S::{field}) == {size}, \"{field}\");")
    text = "\n".join(["#include <cstddef>", include, f"using S = {name};", *same])
    includes = [word for folder in reversed(FOLDERS) for word in ("-I", folder)]
    done = subprocess.run([*COMPILER, "-std=c++17", "-fsyntax-only", "-x", "c++", *includes, "-"], input=text,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout if done.returncode else ""


@pytest.mark.parametrize("include, name, layout", STRUCTURES, ids=[name for _, name, _ in STRUCTURES])
def test_structures_have_the_same_layout(include, name, layout):
    assert compiled(include, name, layout()) == ""


def test_another_layout_is_seen():
    """Two fields in the other order, a field of another size, a field that is not there."""
    fields = dict(cpu._ForwardArgs._fields_)

    def check(names, **kinds):
        class Wrong(ctypes.Structure):
            _fields_ = [(name, kinds.get(name, fields.get(name))) for name in names]
        return compiled('#include "rnn_cpu.h"', "rnn_cpu_forward_args", Wrong)

    names = list(fields)
    swapped = ["B", "T"] + names[2:]
    assert check(names) == ""
    assert "assertion failed: T" in check(swapped)
    assert "assertion failed: dtype" in check(names, dtype=ctypes.c_int64)
    assert "assertion failed: size" in check(names[:-1])


def test_mxnets_functions_stand_in_the_order_in_which_python_gives_them():
    """A field's name is a part of the function's: get_shape, MXNDArrayGetShapeEx."""
    with open(os.path.join(ROOT, "rnn_ops", "operators", "native", "front.cc"), encoding="utf-8") as file:
        body = re.search(r"struct Functions \{(.*?)\n\};", file.read(), re.S).group(1)
    fields, names = re.findall(r"int \(\*(\w+)\)\(", body), native("front")._FUNCTIONS
    assert len(fields) == len(names) and body.count(";") == len(names) + 2  # with the type of autograd's notes; one in a comment
    wrong = [(field, name) for field, name in zip(fields, names) if field.replace("_", "") not in name.lower()]
    assert not wrong


def test_answers_of_the_short_way_have_the_same_numbers():
    with open(os.path.join(ROOT, "rnn_ops", "operators", "native", "front.cc"), encoding="utf-8") as file:
        names = re.search(r"enum Answer \{ ([\w, ]+) \};", file.read()).group(1).split(", ")
    assert [getattr(native("front"), "_" + name) for name in names] == list(range(len(names))) and len(names) == 3
