"""How many cycles a step takes, from a kernel's machine code: warps walked through the path of one step, cycle by cycle.

The model (`simulate`) is one of a multiprocessor's four schedulers with its share of the warps of one or more blocks; the other
three do the same at the same time. A cycle issues one instruction of one warp. A warp's next instruction may issue
  - `stall` cycles after the last one, as the control code says;
  - when the scoreboards in its wait mask are free: a result comes its opcode's latency (LATENCIES) after the issue, an operand
    has been read READ cycles after it;
  - when its pipe takes the next one: multiply-adds and integer instructions keep theirs for 32 / lanes cycles;
  - after a block barrier, when all warps of the block have come to it;
  - after a memory barrier, MEMBAR cycles later.
Shared memory returns 128 bytes a cycle for all four schedulers, one register of a warp: a 16-byte read of a whole warp keeps it for
4 cycles, or 2 where each pair of lanes n and n ^ 1, or n and n ^ 2, reads the same address (an NVIDIA engineer in
forums.developer.nvidia.com/t/77228, for compute capability 7.x; assumed for later ones). Special functions take 8 cycles a warp.
Instructions that find these busy do not wait for them; their results come later.

States: what a block has sent is there FLIGHT cycles after the last warp that finishes elements has issued the last instruction that
sends. All blocks are alike and start at once, so a block's own sending says when the others' parts come. The block's wait for state n
is over when that time has come, LATENCIES of the wait's instruction later.

`Prediction` cuts a step at the moment the state is there and at the last sending:
  serial   from the wait's end to the last sending of the last warp, all warps of a block together
  flight   of the exchange
  shadow   from the last sending to the wait of the last warp: hidden where it is shorter than the flight
  busy     of a step and tile of rows, at the least: instructions that one scheduler issues, or cycles of its busiest pipe
and `cycles` is a step's time in the simulation, in its steady state; about max(serial + max(flight, shadow), blocks · tiles · busy).

Left out: misses of the instruction cache, conflicts of register banks, lanes of one warp that go different ways, clocks.
"""
import functools
import math
from typing import NamedTuple

from . import sass

# Cycles from issue to the dependent instruction's issue, where a scoreboard says so. [S]: published microbenchmarks of Volta to
# Hopper, in the range they agree on; the rest is assumed.
LATENCIES = {
    "LDS.32": 29, "LDS.64": 31, "LDS.128": 33,   # [S] 29-33
    "SHFL": 24,        # [S] 23-25
    "MUFU": 20,        # [S] 18-23, its 8 cycles of issue included
    "S2R": 25, "LDC": 30, "FCHK": 20, "ATOMS": 60,
    "LDG": 280,        # [S] from L2: 260-300
    "LDL": 35,         # a hit in L1
    "RED": 300, "SYNCS": 20, "STAS": 20,
    "other": 20,
}
BAR = 25       # from the last warp's arrival to the next instruction; [S] 20-30
MEMBAR = 500   # of the whole GPU, with stores to global memory under way; assumed, 300-700
READ = 15      # until a memory instruction's operands have been read
FLIGHT = {
    "async": 200,            # st.async to its mbarrier, seen by the waiting warp; [S] DSMEM load 180-200
    "cluster barrier": 200,  # arrival to wait
    "grid": 700,             # a reduction in L2, and a reader's poll that just missed it and its next one
    "block barrier": BAR,
}
SHARED_BYTES = 128  # a cycle
_LANES_INTEGER, _LANES_SPECIAL = 16, 4  # of one scheduler


class Prediction(NamedTuple):
    """See the top of this file. Cycles, or instructions."""
    exchange: str
    serial: float
    flight: int
    shadow: float
    busy: float
    ffma: float     # cycles of one scheduler for multiply-adds, a step and tile of rows
    shared: float   # cycles of shared memory, a step and tile of rows
    cycles: float   # a step, in steady state
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
    """An issued instruction: step, cycle, cycles that it waited beyond the stall count before it, for what; whether it sends."""
    step: int
    cycle: int
    instruction: sass.Instruction
    waited: int
    why: str
    send: bool


def _latency(one):
    kind = sass.kind(one)
    return LATENCIES.get(kind, LATENCIES.get(one.name, LATENCIES["other"]))


@functools.lru_cache(maxsize=None)
def _lanes(architecture):
    """Lanes of one scheduler for multiply-adds (CUDA C++ Programming Guide, arithmetic instructions)."""
    return 16 if architecture in (70, 72, 75, 80) else 32


def _wavefronts(one, weights, pairs):
    """Cycles of shared memory for one warp's instruction."""
    if one.name == "SHFL":
        return 1
    cycles = sass.width(one) // 4
    if pairs and cycles == 4 and one.address not in weights:
        return 2
    return cycles


class Walk:
    """One kernel's step, ready to be simulated.

    Parameters
    ----------
    loop : sass.Loop
    threads : int, optional
        Of a block, if not what the launch bounds say.
    in_shared, tiles : int
        See `sass.Loop.path`.
    finishing : int, optional
        Warps of the block that finish elements of the state; all of them if not given.
    blocks : int
        Of one multiprocessor.
    pairs : bool
        Whether each pair of neighbouring lanes reads the same 16 bytes of the state.
    """

    def __init__(self, loop, threads=None, in_shared=1, tiles=1, finishing=None, blocks=1, pairs=True):
        self.loop, self.blocks, self.tiles = loop, blocks, tiles
        self.architecture = loop.function.architecture
        warps = max(1, (threads or loop.function.threads) // 32)
        self.warps = math.ceil(warps / 4)  # of a block, on the busiest scheduler
        self.finishing = self.warps if finishing is None else max(1, math.ceil(finishing / 4))
        self.share = min(4, warps)         # schedulers that use shared memory
        self._weights = _weight_reads(loop)
        self.pairs = pairs
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
        ops, last_send = [], None
        loop = self.loop
        lanes = _lanes(self.architecture)
        fixed = loop.exchange == "block barrier"
        for i, one in enumerate(instructions):
            kind = sass.kind(one)
            pipe, busy = 0, 0
            if one.predicate == "!PT":
                pass
            elif kind in ("FFMA", "float") and one.name not in ("FSEL", "FSETP", "FMNMX"):
                pipe, busy = _FLOAT, 32 // lanes
            elif one.name.startswith("IMAD"):
                pipe, busy = _FLOAT, 2
            elif (kind == "integer" and not one.name.startswith("U")) or one.name in ("FSEL", "FSETP", "FMNMX"):
                pipe, busy = _INTEGER, 32 // _LANES_INTEGER
            elif kind in ("LDS.32", "LDS.64", "LDS.128", "STS", "SHFL"):
                pipe, busy = _SHARED, _wavefronts(one, self._weights, self.pairs)
            elif kind == "MUFU":
                pipe, busy = _SPECIAL, 32 // _LANES_SPECIAL
            what = 0
            if not fixed and loop.waits(one):
                what = _WAIT
            elif one.name == "BAR":
                what = _BAR
            elif one.name == "MEMBAR" and ("GPU" in one.opcode or "SYS" in one.opcode):
                what = _MEMBAR
            elif one.name == "LDGDEPBAR":
                what = _COMMIT
            elif one.name == "DEPBAR":
                what = _COPIES
            ops.append(_Op(max(one.stall, 1), tuple(b for b in range(6) if one.wait >> b & 1),
                           one.write, one.read, _latency(one), pipe, busy, what, one))
        # Of the instructions that send, the last one before each wait.
        if not fixed:
            last_send = None
            for i, one in enumerate(instructions):
                if loop.sends(one):
                    last_send = i
                elif loop.waits(one):
                    if last_send is not None:
                        ops[last_send] = ops[last_send]._replace(what=_SEND)
                    last_send = None
            if last_send is not None:
                ops[last_send] = ops[last_send]._replace(what=_SEND)
        return ops

    def predict(self):
        """The Prediction."""
        run, alone = simulate(self), self._alone()
        flight = FLIGHT[self.loop.exchange]
        ops = self.long * self.finishing + self.short * (self.warps - self.finishing)
        pipes = [sum(op.busy for op in ops if op.pipe == pipe) * (self.share if pipe == _SHARED else 1) for pipe in range(1, 5)]
        busy = max(len(ops), *pipes)
        ffma = sum(op.busy for op in ops if op.source.name == "FFMA")
        return Prediction(self.loop.exchange, run.sent - run.start, flight, run.back - run.sent, busy / self.tiles,
                          ffma / self.tiles, pipes[_SHARED - 1] / self.tiles, max(run.cycles, self.blocks * busy),
                          alone.sent - alone.start)

    def listing(self):
        """[Event, ...] of one warp that has the multiprocessor to itself, through one step, from the wait on."""
        return self._alone().events

    def _alone(self):
        return simulate(self, blocks=1, warps=1, share=1)


def _weight_reads(loop):
    """Addresses of the reads of weights in shared memory: in the loop over them, those with one base and several offsets, 16 bytes
    a thread apart."""
    headers = [header for header, what in loop.kinds_of_loops().items() if what == "weights"]
    found = set()
    for header in headers:
        by_base = {}
        for one in loop.body(header):
            if sass.kind(one) == "LDS.128":
                by_base.setdefault(one.operands.split("[")[1].split("+")[0].rstrip("]"), []).append(one.address)
        if by_base:
            found |= set(max(by_base.values(), key=len))
    return found


class Run(NamedTuple):
    """One step of the first block in steady state: when its state was there, when its last warp had sent, when that warp was back at
    the wait; cycles from its state to the next one; and, of one warp, the Events."""
    start: int
    sent: int
    back: int
    cycles: float
    events: list


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
        self.sent = {}     # number of the sending → [warps that have sent, last cycle, warps that wait for it]
        self.barriers = {}  # number of the barrier → warps that have come
        self.backs, self.ends = {}, {}  # step → cycle of the last warp's arrival at its first wait, and of the wait's end


def simulate(walk, blocks=None, warps=None, share=None):
    """The `Run` of some blocks with some warps each on one scheduler, of so many that share the multiprocessor; of all of them, if
    not given."""
    steps = 4
    blocks = walk.blocks if blocks is None else blocks
    number = walk.warps if warps is None else warps
    share = walk.share if share is None else share
    finishing = min(walk.finishing, number)
    flight = FLIGHT[walk.loop.exchange]
    groups = sum(op.what == _SEND for op in walk.long)
    places = [_Block() for _ in range(blocks)]
    live = [_Warp(place, walk.long if w < finishing else walk.short, w < finishing) for place in places for w in range(number)]
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
            raise RuntimeError(f"{walk.loop.function.name}: the warps wait for one another: their paths do not fit together")
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
        if warp.step == steps:
            live.remove(warp)
        elif warp.i == len(warp.ops):
            warp.i, warp.step = 0, warp.step + 1
    return _run(walk, places[0], groups, steps, flight, [event for event in events if event.step == steps - 1])


def _allowed(warp, pipes):
    """The cycle from which a warp's next instruction may issue, and what holds it up."""
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


def _run(walk, place, groups, steps, flight, events):
    """The last whole step of a block. Its state is there a flight after the last sending before, if no warp comes later."""
    if walk.loop.exchange == "block barrier":
        starts = [place.backs[step] + BAR for step in range(steps + 1)]
        sent = back = place.backs[steps]
    else:
        sent = [place.sent[step * groups + groups - 1][1] for step in range(steps)]
        first = [place.sent[(step - 1) * groups][1] + flight if step else 0 for step in range(steps + 1)]
        starts = [max(place.backs[step], first[step]) for step in range(steps + 1)]
        sent, back = sent[steps - 1], place.backs[steps]
    return Run(starts[steps - 1], sent, back, (starts[steps] - starts[1]) / (steps - 1), events)
