"""How many cycles a step takes, from a kernel's machine code: warps walked through the path of one step, issue by issue.

The model (`simulate`) is one of a multiprocessor's four schedulers with its share of the warps of one or more blocks; the
other three do the same at the same time. A cycle issues one instruction of one warp: of the warps that can, the last one's, else
the first's. A warp's next instruction may issue
  - `stall` cycles after the last one, as the control code says;
  - when the scoreboards in its wait mask are free: a result is there LATENCIES after the issue, an operand has been read
    READ cycles after it;
  - when its pipe takes it: 32 threads keep multiply-adds and integer units for 32 / lanes cycles;
  - after a block barrier BAR cycles after the block's last warp has come; after a memory barrier, MEMBAR cycles later.
Shared memory returns one register of a warp, 128 bytes, in a cycle, for all schedulers: a 16-byte read keeps it for 4
cycles, or for 2 where lanes n and n ^ 1, or n and n ^ 2, read the same address (an NVIDIA engineer in
forums.developer.nvidia.com/t/77228, of compute capability 7.x; assumed for later ones). Special functions take 8 cycles a
warp. An instruction that finds these busy issues all the same, and its result comes later.

All blocks are alike and in step, so a block's own sending says when the others' parts come: FLIGHT cycles after the last of
its warps has issued the last instruction that sends.

A step, in steady state, is cut where the state is there and at the last sending:
  serial   from there to the sending: the wait's end, the product, the tree, the function
  shadow   from the sending until the last warp is back at the wait
  cycles   serial + the longer of flight and shadow, and no less than the scheduler is busy
For blocks with several tiles of rows, and for several blocks a multiprocessor, the simulation has them all.

Left out: the instruction cache, banks of registers and of shared memory, lanes of a warp that go different ways, calls.
"""
import math
import re
from typing import NamedTuple

from . import sass

# Cycles from an instruction's issue to that of the one which waits for its result. Published: microbenchmarks of Volta to
# Hopper, with the range that they agree on. The rest is assumed.
LATENCIES = {
    "LDS.32": 29, "LDS.64": 31, "LDS.128": 33,  # published: 28-33
    "SHFL": 24,    # published: 23-25
    "MUFU": 20,    # published: 18-23
    "LDG": 280,    # from L2; published: 260-300
    "LDL": 35,     # assumed, from L1
    "LDC": 30,     # assumed
    "S2R": 25,     # assumed
    "FCHK": 20,    # assumed
    "RED": 300,    # assumed, of those that return a value
    "SYNCS": 20,   # assumed: a try to wait, of which the state is there
    "other": 20,   # assumed
}
READ = 15      # until an instruction has read its operands; assumed
BAR = 25       # from the last warp's arrival to the next instruction; published: 20-30
MEMBAR = 500   # of the whole GPU, with stores to global memory under way; assumed, between 300 and 700
FLIGHT = {
    "async": 200,            # assumed: st.async to its mbarrier (a load from another block: published, 180-200)
    "cluster barrier": 200,  # assumed: from the last arrival to the end of the wait
    "grid": 260,             # a reduction to L2, 250, and half of a poll that missed it; all of a poll, 280, is in the code
    "block barrier": BAR,
}
_LANES_INTEGER, _LANES_SPECIAL = 16, 4  # of one scheduler (CUDA C++ Programming Guide, arithmetic instructions)
_STEPS = 4  # that are simulated; from the second on they are alike


class Prediction(NamedTuple):
    """Cycles of a step; see the top of this file."""
    exchange: str   # one of paths.EXCHANGES
    serial: float
    flight: int
    shadow: float
    busy: float     # a tile of rows: instructions of one scheduler, or cycles of its busiest pipe
    ffma: float     # a tile of rows: of the multiply-adds' pipe, for those alone
    shared: float   # a tile of rows: of shared memory
    cycles: float
    alone: float    # serial of one warp that has the multiprocessor to itself


class _Op(NamedTuple):
    """An instruction as the simulation needs it."""
    stall: int
    wait: tuple
    write: int
    read: int
    latency: int
    pipe: int      # 0, or one of the four below
    busy: int      # cycles of the pipe
    what: int      # _SEND, _WAIT, ... or 0
    source: object


_FLOAT, _INTEGER, _SHARED, _SPECIAL = 1, 2, 3, 4
_SEND, _WAIT, _BAR, _MEMBAR, _COMMIT, _COPIES = 1, 2, 3, 4, 5, 6


class Event(NamedTuple):
    """An instruction's issue."""
    step: int
    cycle: int
    instruction: sass.Instruction
    waited: int  # cycles beyond the stall count of the one before
    why: str     # for what
    sends: bool  # the last of a step that does


def _lanes(architecture):
    """Lanes of one scheduler for multiply-adds (CUDA C++ Programming Guide, arithmetic instructions)."""
    return 16 if architecture in (70, 72, 75, 80) else 32


class Walk:
    """One kernel's step, ready to be simulated.

    Parameters
    ----------
    loop : paths.Loop
    threads : int, optional
        Of a block, if not what the launch bounds say.
    in_shared, tiles : int
        See `paths.Loop.path`.
    finishing : int, optional
        Warps of the block that finish elements of the state; all of them if not given.
    blocks : int
        Of one multiprocessor.
    pairs : bool
        Whether neighbouring lanes read the same 16 bytes of the state.
    """

    def __init__(self, loop, threads=None, in_shared=1, tiles=1, finishing=None, blocks=1, pairs=True):
        self.loop, self.blocks, self.tiles = loop, blocks, tiles
        threads = threads or loop.function.threads
        warps = max(1, threads // 32)
        self.warps = math.ceil(warps / 4)  # of a block, on the busiest scheduler
        self.finishing = self.warps if finishing is None else max(1, math.ceil(finishing / 4))
        self.share = min(4, warps)         # schedulers that use shared memory
        # 16-byte reads that are not the same for neighbouring lanes; None: all of them.
        self._single = _weight_reads(loop, threads) if pairs else None
        self.path = loop.path(in_shared, tiles)
        long, short = self.path.instructions, loop.path(in_shared, tiles, finishes=False).instructions
        self.long_path, self.short_path = self._turned(long), self._turned(short)
        if sum(one.name == "BAR" for one in long) != sum(one.name == "BAR" for one in short):
            self.short_path = self.long_path  # it would not come to all barriers
        self.long, self.short = self._ops(self.long_path), self._ops(self.short_path)

    def _turned(self, instructions):
        """The path from the wait on. Within a block that is the barrier before the product."""
        loop = self.loop
        waits = [i for i, one in enumerate(instructions) if loop.waits(one)]
        if not waits:
            return list(instructions)
        start = waits[0]
        if loop.exchange == "block barrier":
            start = max(waits, key=lambda i: self._product_after(instructions, i))
        return list(instructions[start:]) + list(instructions[:start])

    @staticmethod
    def _product_after(instructions, i):
        """Multiply-adds between a barrier and the next one."""
        number = 0
        for one in list(instructions[i + 1:]) + list(instructions[:i]):
            if one.name == "BAR":
                return number
            number += one.name == "FFMA"
        return number

    def _ops(self, instructions):
        """The path as `_Op`s; of the instructions that send, the last one before each wait is _SEND."""
        loop, ops, sending = self.loop, [], None
        for i, one in enumerate(instructions):
            waits = loop.waits(one) and loop.exchange != "block barrier"
            if loop.sends(one) and loop.exchange != "block barrier":
                sending = i
            elif waits and sending is not None:
                ops[sending] = ops[sending]._replace(what=_SEND)
                sending = None
            pipe, busy = self._pipe(one)
            latency = LATENCIES.get(sass.kind(one), LATENCIES["other"])
            ops.append(_Op(max(one.stall, 1), tuple(b for b in range(6) if one.wait >> b & 1), one.write, one.read, latency,
                           pipe, busy, _WAIT if waits else _what(one), one))
        if sending is not None:
            ops[sending] = ops[sending]._replace(what=_SEND)
        return ops

    def _pipe(self, one):
        """The pipe that a warp's instruction needs, and for how many cycles."""
        kind = sass.kind(one)
        if kind == "MUFU":
            return _SPECIAL, 32 // _LANES_SPECIAL
        if kind == "SHFL":
            return _SHARED, 1
        if kind.startswith("LDS") or kind == "STS":
            cycles = sass.width(one) // 4
            pairs = kind == "LDS.128" and self._single is not None and one.address not in self._single
            return _SHARED, cycles // 2 if pairs else cycles
        if one.name.startswith("IMAD"):
            return _FLOAT, 2
        if one.name in ("FSEL", "FSETP", "FMNMX") or (kind == "integer" and not one.name.startswith("U")):
            return _INTEGER, 32 // _LANES_INTEGER
        if kind in ("FFMA", "float"):
            return _FLOAT, 32 // _lanes(self.loop.function.architecture)
        return 0, 0

    def predict(self):
        """The Prediction."""
        run, alone = simulate(self), self._alone()
        flight = FLIGHT[self.loop.exchange]
        ops = self.long * self.finishing + self.short * (self.warps - self.finishing)
        pipes = [sum(op.busy for op in ops if op.pipe == pipe) for pipe in (_FLOAT, _INTEGER, _SPECIAL)]
        shared = self.share * sum(op.busy for op in ops if op.pipe == _SHARED)
        busy = max(len(ops), shared, *pipes)
        ffma = sum(op.busy for op in ops if op.source.name == "FFMA")
        return Prediction(self.loop.exchange, run.sent - run.start, flight, run.back - run.sent, busy / self.tiles,
                          ffma / self.tiles, shared / self.tiles, max(run.cycles, self.blocks * busy),
                          alone.sent - alone.start)

    def listing(self):
        """[Event, ...] of one warp that has the multiprocessor to itself, through one step, from the wait on."""
        return self._alone().events

    def _alone(self):
        return simulate(self, blocks=1, warps=1, share=1)


def _what(one):
    """The effect of an instruction on its warp, besides its time."""
    if one.name == "MEMBAR":
        return _MEMBAR if "GPU" in one.opcode or "SYS" in one.opcode else 0
    return {"BAR": _BAR, "LDGDEPBAR": _COMMIT, "DEPBAR": _COPIES}.get(one.name, 0)


def _weight_reads(loop, threads):
    """Addresses of the 16-byte reads of weights in shared memory: of one base, at distances of 16 bytes a thread."""
    places = {}  # base → {address of the instruction: offset}
    for one in loop.instructions:
        if sass.kind(one) == "LDS.128":
            base, offset = re.search(r"\[(.*?)\+?(-?0x[0-9a-f]+)?\]", one.operands).groups()
            places.setdefault(base, {})[one.address] = int(offset or "0", 16)
    return {address for offsets in places.values() for address in offsets
            if len({offset % (16 * threads) for offset in offsets.values()}) == 1 < len(set(offsets.values()))}


class Run(NamedTuple):
    """The last whole step of a simulation's first block."""
    start: int     # its state was there
    sent: int      # its last warp had sent
    back: int      # and was at the wait
    cycles: float  # from one step's start to the next one's
    events: list   # of its first warp


class _Warp:
    def __init__(self, block, ops, finishes):
        self.block, self.ops, self.finishes = block, ops, finishes
        self.i, self.step, self.ready = 0, 0, 0  # next instruction; its step; when it may issue
        self.boards = [0] * 6
        self.waits, self.sends, self.bars = 0, 0, 0
        self.copies, self.batches = [], []  # cycles at which they have come
        self.parked = False


class _Block:
    def __init__(self):
        self.sent = {}      # number of the sending → [warps that have sent, last cycle, warps that wait for it]
        self.barriers = {}  # number of the barrier → warps that have come
        self.backs = {}     # step → when its last warp was at its first wait


def simulate(walk, blocks=None, warps=None, share=None):
    """The `Run` of so many blocks with so many warps each on one of so many schedulers, or of all that the Walk has."""
    blocks = walk.blocks if blocks is None else blocks
    number = walk.warps if warps is None else warps
    share = walk.share if share is None else share
    finishing = min(walk.finishing, number)
    flight = FLIGHT[walk.loop.exchange]
    groups = sum(op.what == _SEND for op in walk.long)
    places = [_Block() for _ in range(blocks)]
    live = [_Warp(place, walk.long if w < finishing else walk.short, w < finishing)
            for place in places for w in range(number)]
    watched = live[0]
    pipes = [0] * 5
    events = []
    now, last = -1, None
    while live:
        best = None
        for warp in live:
            if not warp.parked:
                time, why = _allowed(warp, pipes)
                key = max(time, now + 1), warp is not last
                if best is None or key < best[0]:
                    best = key, warp, why
        if best is None:
            raise RuntimeError(f"{walk.loop.function.name}: the warps wait for one another, so their paths are wrong")
        (cycle, _), warp, why = best
        op, place = warp.ops[warp.i], warp.block
        if warp.i == 0:
            place.backs[warp.step] = max(place.backs.get(warp.step, 0), cycle)
        if op.what == _WAIT and warp.waits >= groups:
            entry = place.sent.setdefault(warp.waits - groups, [0, 0, []])
            if entry[0] < finishing:  # not on its way yet
                warp.parked = True
                entry[2].append(warp)
                continue
        if warp is watched:
            events.append(Event(warp.step, cycle, op.source, cycle - warp.ready, why, op.what == _SEND))
        now, last = cycle, warp
        start = cycle
        if op.pipe in (_FLOAT, _INTEGER):
            pipes[op.pipe] = cycle + op.busy
        elif op.pipe:
            start = max(cycle, pipes[op.pipe])
            # Of the schedulers' reads at one time, this one's is done last.
            others = (share - 1) * op.busy if op.pipe == _SHARED else 0
            pipes[op.pipe] = start + op.busy + others
            start += others
        warp.ready = cycle + op.stall
        done = start + op.latency
        if op.source.name == "LDGSTS":
            warp.copies.append(done)
        if op.what == _COMMIT:
            warp.batches.append(max(warp.copies, default=cycle))
            warp.copies = []
        elif op.what == _MEMBAR:
            warp.ready = cycle + MEMBAR
        elif op.what == _SEND and warp.finishes:
            entry = place.sent.setdefault(warp.sends, [0, 0, []])
            entry[0], entry[1] = entry[0] + 1, max(entry[1], cycle)
            warp.sends += 1
            if entry[0] == finishing:
                for other in entry[2]:
                    other.parked = False
        elif op.what == _WAIT:
            there = place.sent[warp.waits - groups][1] + flight if warp.waits >= groups else 0
            done = max(cycle, there) + op.latency
            if op.write == sass.NONE:
                warp.ready = max(warp.ready, there)
            warp.waits += 1
        elif op.what == _BAR:
            arrived = place.barriers.setdefault(warp.bars, [])
            arrived.append(warp)
            warp.bars += 1
            warp.parked = True
            if len(arrived) == number:
                for other in arrived:
                    other.parked, other.ready = False, cycle + BAR
        if op.write != sass.NONE:
            warp.boards[op.write] = max(warp.boards[op.write], done)
        if op.read != sass.NONE:
            warp.boards[op.read] = max(warp.boards[op.read], start + READ)
        warp.i += 1
        if warp.step == _STEPS:
            live.remove(warp)
        elif warp.i == len(warp.ops):
            warp.i, warp.step = 0, warp.step + 1
    return _run(walk, places[0], groups, [event for event in events if event.step == _STEPS - 1])


def _allowed(warp, pipes):
    """The cycle from which a warp's next instruction may issue, and the cause of the delay."""
    op = warp.ops[warp.i]
    time, why = warp.ready, ""
    for b in op.wait:
        if warp.boards[b] > time:
            time, why = warp.boards[b], f"scoreboard {b}"
    if op.what == _COPIES:
        open_ = int(op.source.operands.rsplit("0x", 1)[1], 16)
        done = max(warp.batches[:len(warp.batches) - open_], default=0)
        if done > time:
            time, why = done, "copies"
    if op.pipe in (_FLOAT, _INTEGER) and pipes[op.pipe] > time:
        time, why = pipes[op.pipe], "pipe"
    return time, why


def _run(walk, place, groups, events):
    """The Run. A state is there a flight after the last step's sending, unless a warp comes later."""
    flight, backs = FLIGHT[walk.loop.exchange], [place.backs[step] for step in range(_STEPS + 1)]
    if walk.loop.exchange == "block barrier":
        starts, sent = [back + flight for back in backs], backs[-1]
    else:
        sent = place.sent[_STEPS * groups - 1][1]
        starts = [max(back, place.sent[(step - 1) * groups][1] + flight if step else 0) for step, back in enumerate(backs)]
    return Run(starts[-2], sent, backs[-1], (starts[-1] - starts[1]) / (_STEPS - 1), events)
