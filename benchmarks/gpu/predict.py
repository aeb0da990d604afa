"""Writes rnn_ops/backends/cuda/predictions.json, which `variants.choose` goes by: how long a step of each kernel takes.

    python -m benchmarks.gpu.predict

Every kernel of the resident, cluster and grid families is compiled for sm_90 (a minute or two), and its machine code
simulated (schedule.py). To be run again when a kernel, the tiles or the compiler change. Needs nvdisasm and NVRTC, no GPU.
"""
import json
import os
import sys

from rnn_ops.backends.cuda import compiler, variants

from . import machine_code

ARCHITECTURE = 90


def kernels():
    """{`sources.Kernel`: its `variants.Tile`}, both directions of all that can be chosen."""
    return {variants.Variant(family, tile, blocks or 1).kernel(direction): tile
            for family in variants.FAMILIES[:-1] for tile, blocks in variants.tiles(family, ARCHITECTURE)
            for direction in ("Forward", "Backward")}


def predictions(cubins):
    """{str(kernel): `variants.Prediction`} of {(kernel, tile): cubin}."""
    arguments = [machine_code.arguments_of(tile) for _, tile in cubins]
    found = {}
    for (kernel, _), walk in zip(cubins, machine_code.walks(list(cubins.values()), arguments)):
        one = walk.predict()
        serial = one.cycles if one.exchange == "block barrier" else one.serial  # the barrier included: nothing flies
        found[str(kernel)] = variants.Prediction(
            round(serial), round(one.shadow), round(one.busy), walk.loop.function.registers)
    return found


def main():
    """The command; 1 if a kernel does not compile."""
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
