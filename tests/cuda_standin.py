"""A GPU's driver and the CUDA runtime under the real CuPy, where there is neither. Memory is the host's.

What a test gets from it is everything of CuPy and of rnn_ops/backends/cuda/runtime.py that runs before a kernel does: real
signatures, real argument checks, real machine code whose kernels and parameters are looked up.

- libcuda.so.1 is a library of our own, built here, whose functions are those of `Driver`. CuPy and our code find it as
  they find the real one, by its name: the process needs its folder in LD_LIBRARY_PATH from the start: `build`
  makes it, `environment` names it.
- The CUDA runtime is inside CuPy's wheels, and asks a driver to prove that it is NVIDIA's, which ours does not. So its place is
  taken one level higher: CuPy's other modules call `cupy_backends.cuda.api.runtime` through the table of C functions
  that every Cython module has, and `install` puts those of `Runtime` into the table, with the very signatures, before CuPy
  is imported.

There may be several GPUs. Each thread has one current, at first GPU 0. A kernel, a stream and memory belong to the GPU that was
current when they were made, and to use them while another one is current is an error, which ``Driver.errors`` keeps. (CUDA lets
some of that pass: it copies from any GPU to any other. But then nothing orders the copy with the work of the other GPU.)

For the driver, the current GPU is that of the thread's context, and a new thread has none. The runtime makes the context of its
GPU current when it does something there; from CUDA 12 on, already when the GPU is chosen.
"""
import collections
import ctypes
import glob
import importlib.util
import os
import re
import struct
import subprocess
import sys
import threading

_CONTEXTS = 0x900  # GPU 0's; the others follow
_GPUS = "RNN_OPS_STANDIN_GPUS"  # the variable that says how many there are
_LIMIT = 232448  # bytes of shared memory a block, on compute capability 9.0

# A library whose functions hand their arguments, integers and pointers, to what has been set for them. 801: not supported.
_TYPE = "typedef long (*function)(" + ", ".join(["long"] * 14) + ");\n"
_FUNCTION = """
static function to_{name};
void set_{name}(function to) {{ to_{name} = to; }}
int {name}(%s) {{ return to_{name} ? to_{name}(%s) : 801; }}
""" % (", ".join(f"long a{n}" for n in range(14)), ", ".join(f"a{n}" for n in range(14)))

GEMM = {"cublasCreate_v2": "create_handle", "cublasSetStream_v2": "set_stream", "cublasSgemm_v2": "multiply_float",
        "cublasDgemm_v2": "multiply_double"}  # as `Runtime.functions` of runtime.py calls them


class Function:
    """A kernel in a module: what the driver knows of it."""

    def __init__(self, name, parameters, cubin, device):
        self.name, self.parameters, self.cubin, self.device = name, parameters, cubin, device
        self.attributes = {}


Launched = collections.namedtuple("Launched", "function grid block shared stream arguments cooperative device")


class Driver:
    """The driver's functions, by their names; what has been called is in ``launches``."""

    def __init__(self):
        self.launches = []
        self.errors = []     # what a function raised, which C cannot be told
        self.fail_with = {}  # name of a function → the status it returns
        self.called = []     # names of functions, the CUDA runtime's too
        self.streams = []    # of each fill and copy
        self.clusters = {2: 66, 4: 32, 8: 16, 16: 7}  # others than are estimated
        self._modules, self._functions, self._texts = [], [], {}
        self.run = None  # called with each launch, if it is to do something
        self.runtime = None  # which knows what is current, and whose memory is where

    def function(self, number):
        return self._functions[number - 1]

    def cuModuleLoad(self, module, path):
        with open(ctypes.string_at(path).decode(), "rb") as file:
            return self._load(module, file.read())

    def cuModuleLoadData(self, module, image):
        sections, = struct.unpack("<Q", ctypes.string_at(image + 40, 8))
        size, count = struct.unpack("<HH", ctypes.string_at(image + 58, 4))
        end = max(offset + length for kind, offset, length in (struct.unpack(
            "<4xI16xQQ", ctypes.string_at(image + sections + n * size, 40)) for n in range(count)) if kind != 8)
        return self._load(module, ctypes.string_at(image, max(end, sections + size * count)))

    def _load(self, module, cubin):
        if cubin[:4] != b"\x7fELF":
            return 200  # CUDA_ERROR_INVALID_IMAGE
        self._modules.append((cubin, self.runtime.of_context()))
        _put(module, len(self._modules))
        return 0

    def cuModuleUnload(self, module):
        return 0

    def cuModuleGetFunction(self, function, module, name):
        name, (cubin, device) = ctypes.string_at(name).decode(), self._modules[module - 1]
        sections = elf_sections(cubin)
        if f".text.{name}" not in sections:
            return 500  # CUDA_ERROR_NOT_FOUND
        self._functions.append(Function(name, parameters(sections[f".nv.info.{name}"]), cubin, device))
        _put(function, len(self._functions))
        return 0

    def cuFuncSetAttribute(self, function, attribute, value):
        attribute, value = attribute & 0xffffffff, value & 0xffffffff
        if attribute == 8 and value > _LIMIT or attribute not in (8, 14):
            return 1
        self.function(function).attributes[attribute] = value
        return 0

    def cuFuncGetAttribute(self, value, attribute, function):
        _put(value, self.function(function).attributes.get(attribute, 0), 4)
        return 0

    def cuLaunchKernel(self, function, gx, gy, gz, bx, by, bz, shared, stream, arguments, extra):
        return self._launch(function, (gx, gy, gz), (bx, by, bz), shared, stream, arguments, False)

    def cuLaunchCooperativeKernel(self, function, gx, gy, gz, bx, by, bz, shared, stream, arguments):
        return self._launch(function, (gx, gy, gz), (bx, by, bz), shared, stream, arguments, True)

    def _launch(self, function, grid, block, shared, stream, arguments, cooperative):
        function = self.function(function)
        device = self.runtime.of_context()
        if function.device != device:
            raise WrongGpu(f"kernel {function.name} of GPU {function.device} launched while GPU {device} is current")
        self.runtime.check(stream)
        grid, block = (tuple(number & 0xffffffff for number in numbers) for numbers in (grid, block))
        shared &= 0xffffffff
        if shared > function.attributes.get(8, 48 << 10) or min(grid + block) < 1 or block[0] * block[1] * block[2] > 1024:
            return 1  # CUDA_ERROR_INVALID_VALUE
        addresses = ctypes.cast(arguments, ctypes.POINTER(ctypes.c_void_p))
        values = [ctypes.string_at(addresses[n], size) for n, size in enumerate(function.parameters)]
        for value in values:  # addresses may be anywhere in a structure
            for at in range(0, len(value) - 7, 8):
                self.runtime.check(0, struct.unpack_from("<Q", value, at)[0])
        self.launches.append(Launched(function, grid, block, shared, stream, values, cooperative, device))
        if self.run:
            self.run(self.launches[-1])
        return 0

    def cuMemsetD8Async(self, to, value, count, stream):
        self.streams.append(stream)
        self.runtime.check(stream, to)
        ctypes.memset(to, value & 0xff, count)
        return 0

    def cuMemcpyDtoDAsync_v2(self, to, source, count, stream):
        self.streams.append(stream)
        self.runtime.check(stream, to, source)
        ctypes.memmove(to, source, count)
        return 0

    def cuCtxGetCurrent(self, context):
        found = self.runtime.context()
        _put(context, 0 if found is None else _CONTEXTS + found)
        return 0

    def cuCtxSetCurrent(self, context):
        assert context == 0 or 0 <= context - _CONTEXTS < self.runtime.count
        self.runtime.set_context(context - _CONTEXTS if context else None)
        return 0

    def cuOccupancyMaxActiveBlocksPerMultiprocessor(self, count, function, block, shared):
        if shared > self.function(function).attributes.get(8, 48 << 10):
            return 1
        _put(count, min(2048 // (block & 0xffffffff), 233472 // (shared + 1024)), 4)
        return 0

    def cuOccupancyMaxActiveClusters(self, count, function, config):
        function = self.function(function)
        *sizes, shared, _, attributes, number = struct.unpack("<7I4xQQI", ctypes.string_at(config, 52))
        grid, block = sizes[:3], sizes[3:]
        identity, *cluster = struct.unpack("<I4x3I", ctypes.string_at(attributes, 20))
        if (number, identity, block[1:], cluster[1:]) != (1, 4, [1, 1], [1, 1]) or grid[0] % cluster[0] or (
                shared > function.attributes.get(8, 48 << 10)) or cluster[0] > (16 if function.attributes.get(14) else 8):
            return 1
        _put(count, self.clusters[cluster[0]], 4)
        return 0

    def cuGetErrorName(self, status, text):
        _put(text, ctypes.addressof(self._texts.setdefault(status, ctypes.create_string_buffer(b"status %d" % status))))
        return 0

    cuGetErrorString = cuGetErrorName

    def names(self):
        return [name for name in dir(type(self)) if name.startswith("cu")]


def _put(address, value, size=8):
    ctypes.memmove(address, struct.pack("<q" if size == 8 else "<i", value), size)


def elf_sections(cubin):
    """Content by name of the sections of a 64-bit ELF file."""
    sections, = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<II16xQQ", cubin, sections + n * size) for n in range(count)]
    strings = cubin[headers[names][2]:headers[names][2] + headers[names][3]]
    return {strings[name:strings.index(b"\0", name)].decode(): cubin[offset:offset + length]
            for name, _, offset, length in headers}


def parameters(info):
    """Sizes of a kernel's parameters in bytes, from its section .nv.info: entries of type EIATTR_KPARAM_INFO."""
    found, at = {}, 0
    while at < len(info):
        form, attribute = info[at], info[at + 1]
        size = struct.unpack_from("<H", info, at + 2)[0] if form == 4 else 0
        if (form, attribute) == (4, 0x17):
            ordinal, flags = struct.unpack_from("<4xH2xI", info, at + 4)
            found[ordinal] = flags >> 18
        at += 4 + size
    return [found[ordinal] for ordinal in sorted(found)]


class WrongGpu(Exception):
    """Something of one GPU is used while another one is current."""


class Runtime:
    """The functions of the CUDA runtime, as `cupy_backends.cuda.api.runtime` has them. A stream's work is done at once."""

    PROPERTIES = {"name": b"Stand-in H100", "totalGlobalMem": 80 << 30}
    ATTRIBUTES = {"ComputeCapabilityMajor": 9, "ComputeCapabilityMinor": 0, "MultiProcessorCount": 132,
                  "MaxSharedMemoryPerBlockOptin": _LIMIT, "MaxSharedMemoryPerMultiprocessor": 233472, "ClockRate": 1980000,
                  "MemoryClockRate": 2619000, "L2CacheSize": 50 << 20, "WarpSize": 32, "MaxThreadsPerBlock": 1024,
                  "MaxGridDimX": 2 ** 31 - 1, "MaxBlockDimX": 1024}

    def __init__(self, real, version, driver):
        self._real, self._driver = real, driver
        self.version, self.driver_version = version, max(version, 13000)
        self.count = int(os.environ.get(_GPUS, 1))
        self._of_thread = threading.local()
        self.memory = {}   # address → the buffer, its size and the GPU, None for the CPU's
        self.handles = {}  # of streams, events and graphs → the GPU
        self.capturing = None  # the stream that is captured
        self.graphs = 0        # that have been launched
        numbers = {"ComputeCapabilityMajor": 75, "ComputeCapabilityMinor": 76}
        self._values = {numbers.get(name) or getattr(real, f"cudaDevAttr{name}"): value
                        for name, value in self.ATTRIBUTES.items()}

    # What is current, and what belongs to which GPU.

    def context(self):
        """The GPU of the thread's context, or None."""
        return getattr(self._of_thread, "context", None)

    def set_context(self, device):
        self._of_thread.context = device

    def of_context(self):
        """The GPU that is current for a function of the driver."""
        if self.context() is None:
            self._wrong("a thread calls the driver without a context")
        return self.context()

    def use(self, *addresses, stream=0):
        """What every function of the runtime does first that works on the current GPU."""
        self.set_context(self.getDevice())
        self.check(stream, *addresses)

    def check(self, handle, *addresses):
        """Whether a stream (0: each GPU has one) or an event and memory are those of the current GPU."""
        current = self.of_context()
        if self.handles.get(handle, current) != current:
            self._wrong(f"stream or event of GPU {self.handles[handle]} used while GPU {current} is current")
        for address in addresses:
            for begin, (_, size, device) in list(self.memory.items()):
                if begin <= address < begin + size and device not in (None, current):
                    self._wrong(f"memory of GPU {device} used while GPU {current} is current")

    def _wrong(self, sentence):
        self._driver.errors.append(WrongGpu(sentence))  # not raised: Cython would go on with what C has got

    # CUDA's functions.

    def getDeviceCount(self):
        return self.count

    def getDevice(self):
        return getattr(self._of_thread, "device", 0)

    def setDevice(self, device):
        assert 0 <= device < self.count
        self._of_thread.device = device
        if self.version >= 12000:
            self.set_context(device)

    def driverGetVersion(self):
        return self.driver_version

    def runtimeGetVersion(self):
        return self.version

    def _getCUDAMajorVersion(self):
        return self.version // 1000

    def deviceGetAttribute(self, attribute, device):
        return self._values.get(attribute, 1)

    def getDeviceProperties(self, device):
        return dict(self.PROPERTIES)

    def malloc(self, size):
        self.use()
        return self._allocate(size, self.getDevice())

    def _allocate(self, size, device):
        memory = ctypes.create_string_buffer(size + 512)
        address = -(-ctypes.addressof(memory) // 512) * 512
        ctypes.memset(address, 0xff, size)  # what is read before it is written shows
        self.memory[address] = memory, size, device
        return address

    def free(self, address):
        del self.memory[address]

    def memGetInfo(self):
        self.use()
        return 70 << 30, 80 << 30

    def hostAlloc(self, size, flags):
        self.use()
        return self._allocate(size, None)

    def freeHost(self, address):
        self.free(address)

    def memcpy(self, to, source, size, kind):
        self.use(to, source)
        ctypes.memmove(to, source, size)

    def memcpyAsync(self, to, source, size, kind, stream):
        self.use(to, source, stream=stream)
        ctypes.memmove(to, source, size)

    def memset(self, to, value, size):
        self.use(to)
        ctypes.memset(to, value, size)

    def memsetAsync(self, to, value, size, stream):
        self.use(to, stream=stream)
        ctypes.memset(to, value, size)

    def pointerGetMemoryType(self, address):
        kind, _ = self._attributes(address)
        return kind

    def pointerGetAttributes(self, address):
        kind, device = self._attributes(address)
        return self._real.PointerAttributes(device, address, address, kind)

    def _attributes(self, address):
        """cudaMemoryType (unregistered, host, device), and the GPU."""
        for begin, (_, size, device) in list(self.memory.items()):
            if begin <= address < begin + size:
                return (1, self.getDevice()) if device is None else (2, device)
        return 0, self.getDevice()

    def deviceSynchronize(self):
        self.use()

    def _handle(self):
        self.use()
        handle = 0x10000 * (len(self.handles) + 1)  # no number that a test gives to MXNet's streams
        self.handles[handle] = self.getDevice()
        return handle

    def streamCreate(self):
        return self._handle()

    def streamCreateWithFlags(self, flags):
        return self._handle()

    def streamCreateWithPriority(self, flags, priority):
        return self._handle()

    def streamGetPriority(self, stream):
        return 0

    def streamDestroy(self, stream):
        pass

    def streamSynchronize(self, stream):
        self.use(stream=stream)
        assert self.capturing is None, "synchronized while captured"

    def streamQuery(self, stream):
        pass

    def streamIsCapturing(self, stream):
        return self.capturing == stream

    def streamBeginCapture(self, stream, mode=None):
        assert stream and self.capturing is None
        self.capturing = stream

    def streamEndCapture(self, stream):
        assert self.capturing == stream
        self.capturing = None
        return self._handle()

    def graphInstantiate(self, graph):
        return self._handle()

    def graphLaunch(self, graph, stream):
        self.use(stream=stream)
        self.graphs += 1

    def graphDestroy(self, graph):
        pass

    def graphExecDestroy(self, graph):
        pass

    def eventCreate(self):
        return self._handle()

    def eventCreateWithFlags(self, flags):
        return self._handle()

    def eventRecord(self, event, stream):
        self.use(stream=stream)
        self.check(event)

    def eventQuery(self, event):
        return 0

    def eventSynchronize(self, event):
        pass

    def eventElapsedTime(self, start, end):
        return 1.0

    def eventDestroy(self, event):
        pass

    def _ensure_context(self):
        self.use()

    def names(self):
        return [name for name in vars(type(self)) if name in self._real.__pyx_capi__ or hasattr(self._real, name)
                and not name.startswith("__")]


def build(folder):
    """Make libcuda.so.1 in a folder and, beside it, what NVIDIA's wheels of cuBLAS would bring for the CuPy that is here."""
    compile_library(os.path.join(folder, "libcuda.so.1"), Driver().names())
    version, names = cublas_names()
    place = os.path.join(folder, "wheels", "nvidia", "cublas" if version < 13 else "cu13", "lib")
    os.makedirs(place)
    compile_library(os.path.join(place, f"libcublasLt.so.{version}"), [])
    compile_library(os.path.join(place, f"libcublas.so.{version}"), names)


def compile_library(path, names, more=""):
    """A library of functions that do nothing, until set_NAME gives NAME something to do. Its symbols have versions, as
    NVIDIA's have."""
    soname, script = os.path.basename(path), path + ".version"
    with open(path + ".c", "w", encoding="utf-8") as file:
        file.write(_TYPE + "".join(_FUNCTION.format(name=name) for name in names) + more)
    with open(script, "w", encoding="utf-8") as file:
        file.write(f"{soname} {{ global: *; }};\n")
    subprocess.run([*os.environ.get("CC", "gcc").split(), "-shared", "-fPIC", path + ".c", "-o", path,
                    f"-Wl,-soname,{soname}", f"-Wl,--version-script={script}"], check=True)


def cublas_names():
    """The major version of the cuBLAS that CuPy wants and the functions that it wants of it."""
    folder = os.path.join(importlib.util.find_spec("cupy_backends").submodule_search_locations[0], "cuda", "libs")
    with open(glob.glob(os.path.join(folder, "cublas.*.so"))[0], "rb") as file:
        sections = elf_sections(file.read())
    strings, symbols = sections[".dynstr"], sections[".dynsym"]
    found = [strings[name:strings.index(b"\0", name)].decode() for name, section in (
        struct.unpack_from("<I2xH", symbols, at) for at in range(0, len(symbols), 24)) if section == 0]  # 0: undefined
    version = int(re.search(rb"libcublas\.so\.(\d+)", strings).group(1))
    return version, [name for name in found if name.startswith("cublas")]


def environment(folder, gpus=1):
    """Of a process in which `install` is to be called."""
    return dict(os.environ, **{_GPUS: str(gpus)}, LD_LIBRARY_PATH=str(folder), RNN_OPS_CACHE=os.path.join(folder, "cubins"),
                CUPY_CACHE_DIR=os.path.join(folder, "cupy"), PYTHONPATH=os.path.join(folder, "wheels"))


_kept = []
_C = {"int": ctypes.c_int, "intptr_t": ctypes.c_ssize_t, "size_t": ctypes.c_size_t, "unsigned int": ctypes.c_uint,
      "float": ctypes.c_float, "void": None}


def install():
    """Before CuPy is imported → (driver, runtime)."""
    assert "cupy" not in sys.modules
    from rnn_ops.backends.cuda import libraries
    for distribution in libraries.CUPY:
        libraries.load_for(distribution)
    from cupy_backends.cuda.api import runtime as real
    driver = Driver()
    library = ctypes.CDLL("libcuda.so.1")
    for name in driver.names():
        _set(library, name, getattr(driver, name), driver)
    version, _ = cublas_names()
    runtime = driver.runtime = Runtime(real, 1000 * version + 80 * (version == 11), driver)
    table = real.__pyx_capi__
    for name in runtime.names():
        function = _noted(driver.called, name, getattr(runtime, name))
        if name in table:
            table[name] = _capsule(table[name], function)
        if hasattr(real, name):
            setattr(real, name, function)
    return driver, runtime


def _noted(called, name, function):
    def call(*given):
        called.append(name)
        return function(*given)
    return call


def _set(library, name, method, driver):
    count = method.__func__.__code__.co_argcount - 1
    kind = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_long] * 14)

    def call(*given):
        driver.called.append(name)
        if name in driver.fail_with:
            return driver.fail_with[name]
        try:
            return method(*given[:count])
        except BaseException as error:
            driver.errors.append(error)
            return 719  # CUDA_ERROR_LAUNCH_FAILED
    _kept.append(kind(call))
    getattr(library, f"set_{name}")(_kept[-1])


def _capsule(capsule, function):
    """A capsule for a function as another one is for its."""
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_New.restype = ctypes.py_object
    api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    signature = api.PyCapsule_GetName(capsule)
    result, arguments = re.fullmatch(r"(.*?) ?\((.*)\)", signature.decode()).groups()
    kinds = [re.sub(r" ?__pyx_\w+$", "", argument) for argument in arguments.split(", ")]
    given = [kind for argument, kind in zip(arguments.split(", "), kinds) if "__pyx_" not in argument and kind != "void"]
    # Optional arguments come as a structure, and the last of all says nothing: neither is handed on.
    kind = ctypes.PYFUNCTYPE(_type(result), *[_type(k) for k in kinds if k != "void"])
    _kept.append(kind(lambda *values: function(*values[:len(given)])))
    _kept.append(signature)
    return api.PyCapsule_New(ctypes.cast(_kept[-2], ctypes.c_void_p), signature, None)


def _type(name):
    if name == "PyObject *" or name.startswith("struct __pyx_obj"):
        return ctypes.py_object
    return ctypes.c_void_p if name.endswith("*") else _C[name]
