"""Writes rnn_ops/backends/cuda/predictions.json, which `variants.choose` goes by: how long each kernel's step takes on sm_90.

    python -m benchmarks.gpu.predict

Every kernel of the resident, cluster and grid families is compiled (a minute or two) and its machine code simulated (schedule.py). To
be run again when a kernel or the compiler changes. Needs nvdisasm and NVRTC, but no GPU.
"""
import json
import os
import sys

from rnn_ops.backends.cuda import compiler, variants

from . import machine_code, sass, schedule

ARCHITECTURE = 90


def kernels():
    """{`sources.Kernel`: its `variants.Tile`}, both directions of all that can be chosen."""
    return {variants.Variant(family, tile, blocks or 1).kernel(direction): tile
            for family in variants.FAMILIES[:-1] for tile, blocks in variants.tiles(family, ARCHITECTURE)
            for direction in ("Forward", "Backward")}


def predictions(cubins):
    """{str(kernel): `variants.Prediction`} of {(kernel, tile): cubin}."""
    found = {}
    for (kernel, tile), functions in zip(cubins, sass.disassemble(list(cubins.values()))):
        function, = functions
        one = schedule.Walk(sass.Loop(function), **machine_code.arguments_of(tile)).predict()
        serial = one.cycles if one.exchange == "block barrier" else one.serial  # the barrier included: nothing flies
        found[str(kernel)] = variants.Prediction(round(serial), round(one.shadow), round(one.busy), function.registers)
    return found


def main():
    """The command; 1 if a kernel does not compile."""
    tiles = kernels()
    paths = compiler.compile_all(tiles, ARCHITECTURE, progress=lambda done, total: print(f"\r{done} of {total} compiled", end=""))
    print()
    failed = [f"{kernel}: {path}" for kernel, path in paths.items() if isinstance(path, compiler.CompileError)]
    if failed:
        print("\n".join(failed))
        return 1
    cubins = {}
    for kernel, path in paths.items():
        with open(path, "rb") as file:
            cubins[kernel, tiles[kernel]] = file.read()
    with open(os.path.join(os.path.dirname(variants.__file__), "predictions.json"), "w", encoding="utf-8") as file:
        lines = ",\n".join(f"{json.dumps(kernel)}: {json.dumps(numbers)}" for kernel, numbers in predictions(cubins).items())
        file.write(f'{{"compiler": {json.dumps(str(compiler.find(ARCHITECTURE)))},\n"kernels": {{\n{lines}\n}}}}\n')
    return 0


if __name__ == "__main__":
    sys.exit(main())
