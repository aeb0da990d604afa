"""Writes rnn_ops/backends/cuda/predictions.json, which `variants.choose` goes by: how long a step of each kernel takes.

    python -m benchmarks.machine_code.predict

Every kernel of the resident, cluster and grid families is compiled for sm_90 (a minute or two), and its machine code
simulated (schedule.py). To be run again when a kernel, the tiles or the compiler change. Needs nvdisasm and NVRTC, no GPU.
"""
import json
import os
import sys

from rnn_ops.backends.cuda import compiler, variants

from . import paths, report, sass, schedule, tools

ARCHITECTURE = 90


def kernels():
    """{`sources.Kernel`: its `variants.Tile`}, both directions of all that can be chosen on any architecture."""
    return {variants.Variant(family, tile, blocks or 1).kernel(direction): tile
            for architecture in variants.ARCHITECTURES for family in variants.FAMILIES[:-1]
            for tile, blocks in variants.tiles(family, architecture) for direction in ("Forward", "Backward")}


def predictions(cubins):
    """{str(kernel): `variants.Prediction`} of {(kernel, tile): cubin}."""
    found = {}
    for (kernel, tile), functions in zip(cubins, sass.disassemble(list(cubins.values()))):
        function, = functions
        loop = paths.Loop(function)
        one, two, four = (schedule.Walk(loop, **report.arguments_of(tile, tiles)).predict() for tiles in (1, 2, 4))
        found[str(kernel)] = variants.Prediction(round(one.cycles), round(two.cycles), round((four.cycles - two.cycles) / 2),
                                                 round(one.busy), function.registers)
    return found


def main(arguments=None):
    """The command; 1 if a kernel does not compile."""
    parser = tools.Parser(prog=f"python -m {__package__}.predict", description=__doc__.split("\n", 1)[0])
    parser.parse_args(arguments)
    parser.check_tools(ARCHITECTURE)
    tiles = kernels()
    files = compiler.compile_all(tiles, ARCHITECTURE)
    failed = [f"{kernel}: {file}" for kernel, file in files.items() if isinstance(file, compiler.CompileError)]
    if failed:
        print("\n".join(failed))
        return 1
    cubins = {}
    for kernel, path in files.items():
        with open(path, "rb") as file:
            cubins[kernel, tiles[kernel]] = file.read()
    lines = [f"{json.dumps(kernel)}: {json.dumps(numbers)}" for kernel, numbers in predictions(cubins).items()]
    path = os.path.join(os.path.dirname(variants.__file__), "predictions.json")
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'{{"compiler": {json.dumps(str(compiler.find(ARCHITECTURE)))},\n"kernels": {{\n')
        file.write(",\n".join(lines) + "\n}}\n")
    print(f"{len(lines)} kernels: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
