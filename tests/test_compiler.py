"""rnn_ops/backends/cuda/compiler.py: the choice of an NVRTC, its machine code, and the files on disk."""
import contextlib
import glob
import locale
import os
import stat
import subprocess
import sys

import pytest

from rnn_ops.backends.cuda import compiler, sources

SMALL = sources.Kernel("sums", "rnn_sum_chunks", (("REAL", "float"),))
OTHER = sources.Kernel("sums", "rnn_sum_chunks", (("REAL", "double"),))
WRONG = sources.Kernel("sums", "rnn_sum_chunks", (("REAL", "nothing"),))
KERNEL = "extern \"C\" __global__ void kernel(int* data) { data[0] = 1; }"


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """The folder of cubins, an empty one."""
    monkeypatch.setenv("RNN_OPS_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


class Version:
    """An NVRTC that is not here."""

    def __init__(self, *version, architectures=(70, 72, 75, 80, 86, 87, 89, 90)):
        self.version, self.architectures = version, architectures


@pytest.fixture
def here(monkeypatch):
    """A function that replaces the NVRTCs of this machine by others."""
    def put(*versions):
        monkeypatch.setattr(compiler, "found", lambda: [v if isinstance(v, Version) else Version(*v) for v in versions])
        compiler.find.cache_clear()
    yield put
    compiler.find.cache_clear()


BLACKWELL = Version(12, 8, architectures=(75, 80, 90, 100, 120))
NEWEST = Version(13, 0, architectures=(75, 80, 86, 90, 100, 103, 120))


@pytest.mark.parametrize("architecture, driver, version", [
    (80, None, (11, 8)), (80, 11080, (11, 8)), (80, 13000, (11, 8)), (70, 13000, (11, 8)),
    (90, None, (12, 4)), (90, 12000, (12, 4)), (90, 13000, (12, 4)),
    (100, None, (12, 8)), (100, 12040, (12, 8)), (103, 13000, (13, 0)), (103, None, (13, 0))])
def test_the_oldest_nvrtc_that_fits_is_chosen(here, architecture, driver, version):
    here((11, 8), (12, 0), (12, 4), BLACKWELL, NEWEST)
    assert compiler.find(architecture, driver).version == version


@pytest.mark.parametrize("versions, architecture, driver, sentence", [
    ([], 80, None, "8.0: got NVRTC none, needs 11.2 or newer: pip install nvidia-cuda-nvrtc"),
    ([(11, 8)], 90, None, "9.0: got NVRTC 11.8, needs 12.1 or newer: pip install nvidia-cuda-nvrtc"),
    ([(11, 8), (12, 0), NEWEST], 90, 12040, "9.0: got NVRTC 11.8 and 12.0 and 13.0, needs 12.1 or newer and older than "
     "13.0, since the driver is for CUDA 12.4: pip install nvidia-cuda-nvrtc-cu12"),
    ([(12, 4)], 80, 11080, "8.0: got NVRTC 12.4, needs 11.2 or newer and older than 12.0, since the driver is for CUDA "
     "11.8: pip install nvidia-cuda-nvrtc-cu11"),
    ([(12, 4)], 90, 11080, "9.0: got NVRTC 12.4, needs 12.1 or newer and a driver for CUDA 12 or newer, got one for CUDA "
     "11.8: update the driver"),
    ([(12, 4)], 120, 12080, "12.0: got NVRTC 12.4, needs 12.8 or newer and older than 13.0, since the driver is for CUDA "
     "12.8: pip install nvidia-cuda-nvrtc-cu12"),
    ([NEWEST], 70, 13000, "7.0: got NVRTC 13.0, needs 11.2 or newer and older than 13.0: "
     "pip install nvidia-cuda-nvrtc-cu11"),
    ([BLACKWELL], 103, 13000, "10.3: got NVRTC 12.8, needs 12.9 or newer and older than 14.0, since the driver is for CUDA "
     "13.0: pip install nvidia-cuda-nvrtc"),
])
def test_without_a_fitting_nvrtc_the_error_says_what_to_install(here, versions, architecture, driver, sentence):
    here(*versions)
    with pytest.raises(RuntimeError) as raised:
        compiler.find(architecture, driver)
    assert str(raised.value) == "compute capability " + sentence


def test_every_installed_nvrtc_is_found():
    """The extra `test` brings 11.8 and 13.0; where only a newer CuPy's is, that one."""
    found = {nvrtc.version: nvrtc for nvrtc in compiler.found()}
    assert (13, 0) in found and 90 in found[13, 0].architectures and 70 not in found[13, 0].architectures
    if glob.glob(os.path.join(os.path.dirname(os.path.dirname(found[13, 0].path)), "..", "cuda_nvrtc", "lib", "*.so.11.2")):
        assert (11, 8) in found and 70 in found[11, 8].architectures


def test_several_versions_compile_in_one_process_whatever_is_loaded_for_all():
    """One is in front of the others for every library that looks for its functions, as `libraries.load_for` leaves it."""
    code = ("import ctypes, sys; sys.path[:] = eval(sys.argv[1])\n"
            "from rnn_ops.backends.cuda import compiler\n"
            "ctypes.CDLL(compiler.found()[0].path, mode=ctypes.RTLD_GLOBAL)\n"
            "for nvrtc in compiler.found():\n"
            "    print(nvrtc, nvrtc.compile(sys.argv[2], ['-DMAJOR=%d' % nvrtc.version[0]], 80).log.count('Used '))")
    text = KERNEL + "\n#if __CUDACC_VER_MAJOR__ != MAJOR\n#error another version\n#endif\n"
    ran = subprocess.run([sys.executable, "-c", code, repr(sys.path), text], stdout=subprocess.PIPE, check=True, text=True)
    assert ran.stdout.splitlines() == [f"{nvrtc} 1" for nvrtc in compiler.found()]


@pytest.mark.parametrize("number", range(len(compiler.found())))
def test_every_nvrtc_here_compiles(number):
    nvrtc = compiler.found()[number]
    cubin, log = nvrtc.compile(KERNEL, ["--std=c++17"], 80)
    assert cubin[:5] == b"\x7fELF\x02" and b"kernel" in cubin and compiler.resources(log, "kernel").registers > 0
    assert cubin != nvrtc.compile(KERNEL, ["--std=c++17"], 90).cubin
    changed = KERNEL.replace("1", "N")
    assert nvrtc.compile(changed, ["-DN=3"], 80).cubin != nvrtc.compile(changed, ["-DN=4"], 80).cubin
    with pytest.raises(compiler.CompileError, match='identifier "N" is undefined'):
        nvrtc.compile(changed, [], 80)


def test_subnormal_numbers_count_as_zero():
    assert "-ftz=true" in compiler.options(SMALL) and set(SMALL.options) < set(compiler.options(SMALL))


def test_resources_are_those_of_the_kernel():
    """A kernel with a function of its own and both kinds of memory, beside one with neither."""
    source = """
        __device__ __noinline__ int sum(const int* from, int n) {
          int copy[64];
          for (int i = 0; i < 64; i++) copy[i] = from[i];
          return copy[n] + copy[2 * n];
        }
        extern "C" __global__ void large(int* data) {
          __shared__ int shared[10];
          shared[threadIdx.x] = data[threadIdx.x];
          __syncthreads();
          data[threadIdx.x] = sum(data, data[0]) + shared[threadIdx.x ^ 1];
        }
        extern "C" __global__ void small(int* data) { data[threadIdx.x] = 1; }"""
    log = compiler.find(80).compile(source, [], 80).log
    large, small = (compiler.resources(log, name) for name in ("large", "small"))
    assert large.stack == 256 and large.static_shared == 40
    assert small[1:] == (0, 0, 0, 0) and small.registers < large.registers


@pytest.mark.parametrize("number", range(len(compiler.found())))
@pytest.mark.parametrize("text", [KERNEL, "nonsense"])
def test_python_still_knows_its_encoding_after_a_compilation(text, number):
    """NVRTC itself would have left this thread with ASCII."""
    before = locale.getpreferredencoding()
    if before.lower() != "utf-8":
        pytest.skip(f"the locale is one of {before} before it, too")
    with contextlib.suppress(compiler.CompileError):
        compiler.found()[number].compile(text, [], 80)
    assert locale.getpreferredencoding() == before


# What is kept on disk.


def count_compilations(monkeypatch):
    """A list that grows by an architecture with each compilation in this process."""
    compilations, compile_one = [], compiler.Nvrtc.compile
    monkeypatch.setattr(compiler.Nvrtc, "compile", lambda *given: (compilations.append(given[-1]), compile_one(*given))[1])
    return compilations


def test_a_kernel_is_compiled_once(kept, monkeypatch):
    compilations = count_compilations(monkeypatch)
    path = compiler.cubin(SMALL, 80)
    assert compiler.cubin(SMALL, 80) == path and compilations == [80]
    with open(path, "rb") as file:
        assert file.read() == compiler.find(80).compile(sources.text("sums"), compiler.options(SMALL), 80).cubin
    assert os.path.dirname(path) == str(kept) and os.listdir(kept) == [os.path.basename(path)]


@pytest.mark.slow
def test_a_cubins_name_depends_on_everything_that_makes_it(monkeypatch):
    """Two versions of NVRTC, where there are two, and every other pair of things that differ."""
    def name(kernel=SMALL, architecture=80):
        return os.path.basename(compiler.cubin(kernel, architecture))

    names = [name(), name(OTHER), name(architecture=86)]
    monkeypatch.setattr(compiler, "_FTZ", "-ftz=false")
    names.append(name())
    text = sources.text
    monkeypatch.setattr(sources, "text", lambda family: text(family) + "// a new version\n")
    names.append(name())
    found = compiler.found()
    compiler.find.cache_clear()
    monkeypatch.setattr(compiler, "found", lambda: found[-1:])
    names += [name()] * (len(found) > 1)
    compiler.find.cache_clear()
    assert len(set(names)) == len(names) and set(names) == set(os.listdir(compiler.folder()))


@pytest.mark.parametrize("nvrtc", compiler.found(), ids=str)
def test_an_unfinished_file_is_never_used(kept, nvrtc):
    whole = nvrtc.compile(KERNEL, [], 80).cubin
    path = kept.parent / "file"
    path.write_bytes(whole)
    assert compiler._is_whole(str(path))
    for size in {*range(0, len(whole), 13), *range(200), *range(len(whole) - 200, len(whole))}:
        path.write_bytes(whole[:size])
        assert not compiler._is_whole(str(path)), size
    path.write_bytes(bytes(len(whole)))
    assert not compiler._is_whole(str(path)) and not compiler._is_whole(str(kept))


@pytest.mark.parametrize("content", [b"", b"\x7fELF\x02" + bytes(100)])
@pytest.mark.slow
def test_a_spoiled_file_is_replaced(monkeypatch, content):
    path = compiler.cubin(SMALL, 80)
    with open(path, "wb") as file:
        file.write(content)
    compilations = count_compilations(monkeypatch)
    assert compiler.cubin(SMALL, 80) == path and compilations == [80] and os.path.getsize(path) > 1000
    assert compiler.cubin(SMALL, 80) == path and compilations == [80]


def test_no_process_sees_an_unfinished_file(kept, monkeypatch):
    """What stands in the folder at the moment of the renaming, and after a disk that is full."""
    seen, replace = [], os.replace

    def look(source, to):
        seen.append((os.listdir(kept), compiler._is_whole(source)))
        replace(source, to)

    monkeypatch.setattr(os, "replace", look)
    path = compiler.cubin(SMALL, 80)
    (names, whole), = seen
    assert whole and os.path.basename(path) not in names

    def full(source, to):
        if os.path.dirname(to) == str(kept):
            raise OSError(28, "No space left on device")
        replace(source, to)

    os.unlink(path)
    monkeypatch.setattr(os, "replace", full)
    assert compiler._is_whole(compiler.cubin(SMALL, 80)) and os.listdir(kept) == []


@pytest.mark.parametrize("how", ["a file is in the way", "nothing may be written"])
@pytest.mark.slow
def test_a_read_only_folder_is_no_error(kept, monkeypatch, how):
    if how == "a file is in the way":
        kept.write_text("")
    else:
        kept.mkdir()
        kept.chmod(stat.S_IRUSR | stat.S_IXUSR)
        if os.access(kept, os.W_OK):  # root may
            pytest.skip("this user may write everywhere")
    compilations = count_compilations(monkeypatch)
    paths = [compiler.cubin(SMALL, 80) for _ in range(2)]
    assert compilations == [80] and all(compiler._is_whole(path) for path in paths)
    assert not paths[0].startswith(str(kept))
    results = compiler.compile_all([SMALL], 80)
    assert compiler._is_whole(results[SMALL])


def test_the_folder(monkeypatch):
    monkeypatch.setenv("RNN_OPS_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    monkeypatch.setenv("HOME", "/c")
    assert compiler.folder() == "/a"
    monkeypatch.delenv("RNN_OPS_CACHE")
    assert compiler.folder() == "/b/rnn_ops"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert compiler.folder() == "/c/.cache/rnn_ops"


@pytest.mark.slow
def test_many_kernels_are_compiled_in_processes(kept, monkeypatch):
    path, compilations, progress = compiler.cubin(SMALL, 80), count_compilations(monkeypatch), []
    results = compiler.compile_all([OTHER, SMALL, WRONG, OTHER], 80, progress=lambda *numbers: progress.append(numbers))
    assert list(results) == [OTHER, SMALL, WRONG] and progress == [(1, 3), (2, 3), (3, 3)]
    assert results[SMALL] == path and os.path.dirname(results[OTHER]) == str(kept) and compiler._is_whole(results[OTHER])
    assert isinstance(results[WRONG], compiler.CompileError) and 'identifier "nothing" is undefined' in str(results[WRONG])
    assert compiler.cubin(OTHER, 80) == results[OTHER]
    assert compilations == []  # all of it elsewhere


def test_a_process_that_dies_is_an_error_of_its_kernels(monkeypatch, kept):
    """A kernel whose text comes from a function that ends the process."""
    class Deadly(str):
        def __reduce__(self):
            return os._exit, (3,)

    kernel = sources.Kernel("sums", "rnn_sum_chunks", (("REAL", Deadly("float")),))
    results = compiler.compile_all([kernel], 80)
    assert isinstance(results[kernel], compiler.CompileError)
    assert "the process that compiled it has ended" in str(results[kernel])


