"""A report on a kernel's machine code: what its loop over the steps is made of, what is wrong with it, how long a step takes.

    python -m benchmarks.gpu.machine_code --family cluster --shape 32,256
    python -m benchmarks.gpu.machine_code --cubin FILE --tiles 2 --listing

No GPU is needed; nvdisasm (PyPI: nvidia-cuda-nvdisasm) and, but for --cubin, NVRTC are. The disassembly and the executed path are
sass.py's, the cycles schedule.py's; both say what they assume.
"""
import argparse
import sys
from typing import NamedTuple

from benchmarks.gpu import sass, schedule


class Report(NamedTuple):
    """What there is to say of one kernel.

    loop, path: {kind: number} of all instructions of the loop over the steps, and of those that one step executes; idle: of those
    that a warp executes that finishes no element; choices: at the path's branches; prediction: see schedule.Prediction.
    """
    name: str
    exchange: str
    loop: dict
    path: dict
    idle: dict
    choices: tuple
    gates: list
    prediction: schedule.Prediction


def report(cubin, kernel=None, threads=None, in_shared=1, tiles=1, finishing=None, blocks=1, pairs=True, most_besides_ffma=None):
    """The `Report` of one kernel of a cubin.

    Parameters
    ----------
    cubin : bytes
    kernel : str, optional
        Its name; not needed where there is one alone.
    threads : int, optional
        Of a block, if not what the launch bounds say.
    in_shared, tiles, finishing, blocks, pairs
        See `schedule.Walk`.
    most_besides_ffma : int, optional
        See `sass.Loop.gates`.
    """
    return _report(walk(cubin, kernel, threads, in_shared, tiles, finishing, blocks, pairs), most_besides_ffma)


def walk(cubin, kernel=None, threads=None, in_shared=1, tiles=1, finishing=None, blocks=1, pairs=True):
    """The `schedule.Walk` of one kernel of a cubin."""
    functions, = sass.disassemble([cubin])
    found = [function for function in functions if kernel in (None, function.name)]
    if len(found) != 1:
        names = ", ".join(function.name for function in functions)
        raise ValueError(f"kernel: got {kernel!r}, needs one of {names}")
    return schedule.Walk(sass.Loop(found[0]), threads or found[0].threads, in_shared, tiles, finishing, blocks, pairs)


def reports(kernels):
    """A `Report` for each of several kernels, as `report` takes them: dicts of its arguments. One run of nvdisasm for all."""
    found = []
    for functions, arguments in zip(sass.disassemble([one["cubin"] for one in kernels]), kernels):
        arguments = {key: value for key, value in arguments.items() if key != "cubin"}
        function, = [function for function in functions if arguments.pop("kernel", None) in (None, function.name)]
        most = arguments.pop("most_besides_ffma", None)
        threads = arguments.pop("threads", None) or function.threads
        found.append(_report(schedule.Walk(sass.Loop(function), threads, **arguments), most))
    return found


def _report(walk_, most_besides_ffma=None):
    loop = walk_.loop
    return Report(loop.function.name, loop.exchange, loop.counts(), sass.count(walk_.long_path), sass.count(walk_.short_path),
                  walk_.choices, loop.gates(most_besides_ffma), walk_.predict())


def arguments_of(tile, beside=1, tiles=1):
    """What `report` needs to know of a `variants.Tile`, as a dict."""
    pairs = getattr(tile, "k_lanes", 32) <= 16
    finishing = None if tile.k_warps == 1 else min(-(-tile.rows * tile.columns // 32), tile.threads // 32)
    return {"threads": tile.threads, "in_shared": tile.in_shared, "tiles": tiles, "finishing": finishing, "blocks": beside,
            "pairs": pairs}


def table(rows):
    """[(label, Report), ...] as text, a row a kernel."""
    heads = ("kernel", "exchange", "path", "FFMA", "LDS", "SHFL", "MUFU", "serial", "flight", "shadow", "busy", "shared", "cycles")
    lines = [heads]
    for label, one in rows:
        p = one.prediction
        reads = sum(number for kind, number in one.path.items() if kind.startswith("LDS"))
        lines.append((label, one.exchange, sum(one.path.values()), one.path.get("FFMA", 0), reads, one.path.get("SHFL", 0),
                      one.path.get("MUFU", 0), round(p.serial), p.flight, round(p.shadow), p.busy, p.shared, round(p.cycles)))
    widths = [max(len(str(line[i])) for line in lines) for i in range(len(heads))]
    return "\n".join("  ".join(str(cell).ljust(width) if i < 2 else str(cell).rjust(width)
                               for i, (cell, width) in enumerate(zip(line, widths))) for line in lines)


def listing(walk_):
    """One step of one warp that is alone, as text: the cycle of each issue, cycles waited and for what, instruction."""
    events = walk_.listing()
    lines = []
    for event in events:
        waited = f"+{event.waited} {event.why}" if event.waited else ""
        lines.append(f"{event.cycle - events[0].cycle:6d}  {waited:18s} {'send ' if event.send else '     '}"
                     f"{event.instruction.address:6x}  {event.instruction}")
    return "\n".join(lines)


def main(arguments=None):
    """The command; 1 if something is wrong with a kernel."""
    parser = argparse.ArgumentParser(prog="machine_code", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cubin", help="a file; else one is compiled")
    parser.add_argument("--kernel", help="its name, where the cubin has several")
    parser.add_argument("--family", help="resident, cluster or grid; the one that would be chosen if not given")
    parser.add_argument("--shape", help="B,H", default="32,256")
    parser.add_argument("--architecture", type=int, default=90)
    parser.add_argument("--multiprocessors", type=int, default=132)
    parser.add_argument("--threads", type=int, help="of a block")
    parser.add_argument("--in-shared", type=int, default=1, help="passes of the loop over weights in shared memory")
    parser.add_argument("--tiles", type=int, help="tiles of rows of a block")
    parser.add_argument("--finishing", type=int, help="warps that finish elements")
    parser.add_argument("--blocks", type=int, default=1, help="of a multiprocessor")
    parser.add_argument("--listing", action="store_true", help="one step, instruction by instruction")
    options = parser.parse_args(arguments)
    rows, wrong = [], []
    for label, one in _walks(options):
        found = _report(one)
        rows.append((label, found))
        wrong += found.gates
        if options.listing:
            print(f"{label}\n{listing(one)}\n")
        print(f"{label}\n  loop {_counts(found.loop)}\n  path {_counts(found.path)}\n  idle {_counts(found.idle)}")
        guesses = [choice for choice in found.choices if choice.why in ("longer", "shorter")]
        print("  guessed by length: " + (", ".join(f"{choice.address:x} {'taken' if choice.taken else 'not taken'}"
                                                   for choice in guesses) or "nothing"))
        print(f"  {found.prediction}")
    print(table(rows))
    for sentence in wrong:
        print(sentence)
    return 1 if wrong else 0


def _counts(numbers):
    return ", ".join(f"{number} {kind}" for kind, number in numbers.items())


def _walks(options):
    if options.cubin:
        with open(options.cubin, "rb") as file:
            yield options.cubin, walk(file.read(), options.kernel, options.threads, options.in_shared, options.tiles or 1,
                                      options.finishing, options.blocks)
        return
    from rnn_ops.backends.cuda import compiler, variants
    B, H = map(int, options.shape.split(","))
    device = variants.known_device(options.architecture, options.multiprocessors)
    variant = variants.choose(device, "float32", B, H, options.family)
    tiles = options.tiles or -(-min(variant.rows, B) // variant.tile.rows)
    for direction in ("Forward", "Backward"):
        kernel = variant.kernel(direction)
        with open(compiler.cubin(kernel, options.architecture), "rb") as file:
            yield str(kernel), walk(file.read(), kernel.name, **arguments_of(variant.tile, options.blocks, tiles))


if __name__ == "__main__":
    sys.exit(main())
