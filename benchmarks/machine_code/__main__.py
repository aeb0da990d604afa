"""A kernel's machine code: its instructions, its faults, and how many cycles a step takes by prediction.

    python -m benchmarks.machine_code --family cluster --shape 32,256
    python -m benchmarks.machine_code --family cluster --only "Forward<float>, Tile<256, 64, 8, 1, 1" --listing
    python -m benchmarks.machine_code --cubin FILE --tiles 2

Needs no GPU, but nvdisasm (PyPI: nvidia-cuda-nvdisasm) and, but for --cubin, NVRTC.
"""
import sys

from rnn_ops.backends.cuda import compiler, variants

from . import report, tools


def main(arguments=None):
    """The command; 1 if something is wrong with a kernel."""
    parser = tools.Parser(prog=f"python -m {__package__}", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cubin", help="a file with one kernel; else all of a family that can serve a shape are compiled")
    parser.add_argument("--family", help="default: %(default)s", default="cluster", choices=variants.FAMILIES[:-1])
    parser.add_argument("--shape", metavar="B,H", help="default: %(default)s", default="32,256")
    parser.add_argument("--only", metavar="TEXT", help="kernels with this in their name", default="")
    parser.add_argument("--exchange", help="of the cluster family", default="async", choices=variants.EXCHANGES)
    parser.add_argument("--architecture", type=int, default=90)
    parser.add_argument("--multiprocessors", type=int, default=132)
    parser.add_argument("--threads", type=int, help="of a block; default: the launch bounds")
    parser.add_argument("--in-shared", type=int, help="passes of the loop over weights in shared memory")
    parser.add_argument("--tiles", type=int, help="tiles of rows of a block")
    parser.add_argument("--finishing", type=int, help="warps of a block that finish elements")
    parser.add_argument("--blocks", type=int, help="of a multiprocessor")
    parser.add_argument("--listing", action="store_true", help="one step, instruction by instruction")
    options = parser.parse_args(arguments)
    parser.check_tools(None if options.cubin else options.architecture)
    given = {name: getattr(options, name) for name in ("threads", "in_shared", "tiles", "finishing", "blocks")
             if getattr(options, name) is not None}
    if options.cubin:
        files, keywords = {options.cubin: options.cubin}, [given]
    else:
        B, H = map(int, options.shape.split(","))
        found = report.kernels_for(options.family, B, H, options.architecture, options.multiprocessors, options.exchange)
        found = {kernel: arguments for kernel, arguments in found if options.only in str(kernel)}
        files = compiler.compile_all(found, options.architecture)
        keywords = [dict(arguments, **given) for arguments in found.values()]
    cubins = []
    for path in files.values():
        if isinstance(path, compiler.CompileError):
            raise path
        with open(path, "rb") as file:
            cubins.append(file.read())
    rows, wrong = [], []
    for kernel, walk in zip(files, report.walks(cubins, keywords)):
        found = report.of(walk)
        rows.append((str(kernel), found))
        wrong += [f"{kernel}: {sentence}" for sentence in found.gates]
        if options.listing:
            _show(str(kernel), walk, found)
    print(report.table(rows))
    print("\n".join(wrong), end="\n" * bool(wrong))
    return 1 if wrong else 0


def _show(label, walk, found):
    print(f"{label}\n{report.listing(walk)}\n")
    for name in ("loop", "path", "idle"):
        print(f"{name}: " + ", ".join(f"{number} {kind}" for kind, number in getattr(found, name).items()))
    print("branches: " + ", ".join(f"{choice.address:x} {'' if choice.taken else 'not '}taken ({choice.why})"
                                   for choice in walk.loop.choices(walk.path)))
    print(f"{found.prediction}\n")


if __name__ == "__main__":
    sys.exit(main())
