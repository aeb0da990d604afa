"""A report on a kernel's loop over the steps: its instructions, its faults, its predicted cycles.

sass.py disassembles, paths.py finds the executed path, schedule.py counts its cycles; each says what it assumes.
"""
from typing import NamedTuple

from rnn_ops.backends.cuda import variants

from . import paths, sass, schedule


class Report(NamedTuple):
    """The report on one kernel. The numbers are {kind: number}."""
    name: str
    exchange: str  # one of paths.EXCHANGES
    loop: dict     # of all instructions of the loop over the steps
    path: dict     # of those that one step executes
    idle: dict     # of those for a warp that finishes no elements
    gates: list    # faults, as sentences
    prediction: schedule.Prediction


def report(cubin, most_besides_ffma=None, **arguments):
    """The `Report` of the one kernel of a cubin.

    Parameters
    ----------
    cubin : bytes
    most_besides_ffma : int, optional
        See `paths.Loop.gates`.
    arguments
        threads, in_shared, tiles, finishing, blocks, pairs: see `schedule.Walk`; `arguments_of` knows them for a tile.
    """
    return reports([cubin], [arguments], most_besides_ffma)[0]


def reports(cubins, arguments, most_besides_ffma=None):
    """`report` for several cubins, each with its keywords, by one run of nvdisasm."""
    return [of(walk, most_besides_ffma) for walk in walks(cubins, arguments)]


def walks(cubins, arguments):
    """The `schedule.Walk` of the one kernel of each of several cubins, each with its keywords."""
    found = []
    for functions, keywords in zip(sass.disassemble(cubins), arguments):
        if len(functions) != 1:
            raise ValueError(f"cubin: got {len(functions)} kernels, needs one")
        found.append(schedule.Walk(paths.Loop(functions[0]), **keywords))
    return found


def of(walk, most_besides_ffma=None):
    loop = walk.loop
    return Report(loop.function.name, loop.exchange, loop.counts(), sass.count(walk.long_path), sass.count(walk.short_path),
                  loop.gates(most_besides_ffma), walk.predict())


def arguments_of(tile, tiles=1, blocks=1):
    """The keywords of `report` for a `variants.Tile`, with so many tiles of rows a block and blocks a multiprocessor."""
    # Where a warp has all of k, it finishes its own elements; else the block's threads share them.
    finishing = None if tile.k_warps == 1 else min(-(-tile.rows * tile.columns // 32), tile.threads // 32)
    # The lanes that read the same 16 bytes of the state are neighbours; with 32 lanes along k each reads its own.
    return {"threads": tile.threads, "in_shared": tile.in_shared, "tiles": tiles, "finishing": finishing, "blocks": blocks,
            "pairs": tile.k_lanes <= 16}


def table(rows):
    """[(label, Report), ...] as text, a row a kernel."""
    lines = [("kernel", "exchange", "path", "FFMA", "LDS", "SHFL", "MUFU",
              "serial", "flight", "shadow", "busy", "shared", "cycles")]
    for label, one in rows:
        reads = sum(number for kind, number in one.path.items() if kind.startswith("LDS"))
        numbers = [one.path.get(kind, 0) for kind in ("SHFL", "MUFU")]
        cycles = [round(getattr(one.prediction, name)) for name in lines[0][7:]]
        lines.append((label, one.exchange, sum(one.path.values()), one.path.get("FFMA", 0), reads, *numbers, *cycles))
    widths = [max(len(str(line[i])) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(str(cell).ljust(width) if i < 2 else str(cell).rjust(width)
                               for i, (cell, width) in enumerate(zip(line, widths))) for line in lines)


def listing(walk):
    """One step of one warp that is alone, as text: the cycle of each issue, cycles waited and for what, instruction."""
    events = walk.listing()
    lines = []
    for event in events:
        waited = f"+{event.waited} {event.why}" if event.waited else ""
        lines.append(f"{event.cycle - events[0].cycle:6d}  {waited:18s} {'send ' if event.sends else '     '}"
                     f"{event.instruction.address:6x}  {event.instruction}")
    return "\n".join(lines)


def kernels_for(family, B, H, architecture, multiprocessors, exchange="async"):
    """[(`sources.Kernel`, keywords of `report`), ...]: both directions of each tile of a family that can serve a shape,
    whichever would be chosen, with the tiles of rows that a block has with one block a multiprocessor."""
    found = []
    every = variants.tiles(family, architecture)
    least = {}  # by the number of blocks, the smallest K that is enough
    for tile, blocks in every:
        if tile.k >= H:
            least[blocks] = min(tile.k, least.get(blocks, tile.k))
    for tile, blocks in every:
        if least.get(blocks) == tile.k:
            sharing = blocks or -(-H // tile.columns)
            rows = -(-B // min(B, max(1, multiprocessors // sharing)))
            variant = variants.Variant(family, tile, sharing, exchange=exchange)
            found += [(variant.kernel(direction), arguments_of(tile, tiles=-(-rows // tile.rows)))
                      for direction in ("Forward", "Backward")]
    return found
