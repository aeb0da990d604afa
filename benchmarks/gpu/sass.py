"""A kernel's machine code: disassembled, the loop over the steps found, and the path that a warp takes through it.

`disassemble` makes `Function`s of cubins with nvdisasm (PyPI: nvidia-cuda-nvdisasm). `Loop` is the loop over the steps of one of
our kernels: which exchange it has, its inner loops, `path`, the instructions of one step in order, and `gates`, what is wrong with
it. How long a step takes is schedule.py. No GPU is needed, no CuPy and no MXNet.

Which way a branch goes is not in the code. Of all ways through one pass of the loop, `path` takes the one that
  1. calls nothing (slow paths of a division or of tanh's argument are calls, or end in one),
  2. sends the most (a block's last step, which sends nothing, is one of many), and waits for the state,
  3. has the most multiply-adds (tanh and not relu),
  4. is the longest.
That is what the warp does that all others wait for. The shortest way with all of the product on it is what a warp does that has
nothing to finish. `Loop.choices` says for every branch which of these decided; "longer" is a guess.

The control code of an instruction, from the upper of its two 64-bit words (Volta and later; Jia, Maggioni, Staiger and Scarpazza,
"Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking", 2018, section 2.1):
  bits 41-44  stall: cycles until this warp's next instruction may issue
  bit  45     0: the scheduler had better go on with another warp
  bits 46-48  write barrier: one of six counters, up at issue and down when the result is there; 7: none
  bits 49-51  read barrier: the same for when the operands have been read
  bits 52-57  wait mask: counters that must be 0 before this instruction issues
"""
import collections
import functools
import glob
import os
import re
import shutil
import struct
import subprocess
import tempfile
from typing import NamedTuple

from rnn_ops.backends.cuda import libraries

NONE = 7  # no barrier


class Instruction(NamedTuple):
    """One instruction. ``predicate`` is "", "P0", "!UP1", ...; ``opcode`` is with its modifiers; ``wait`` is a bit a barrier."""
    address: int
    predicate: str
    opcode: str
    operands: str
    stall: int
    switch: bool  # the yield bit is 0
    write: int
    read: int
    wait: int

    @property
    def name(self):
        """The opcode without its modifiers."""
        return _name(self.opcode)

    def __str__(self):
        return f"{'@' + self.predicate + ' ' if self.predicate else ''}{self.opcode} {self.operands}".rstrip()


@functools.lru_cache(maxsize=None)
def _name(opcode):
    return opcode.split(".", 1)[0]


class Function(NamedTuple):
    """One kernel. ``threads``: of a block, as its launch bounds say, or None; ``registers``: of a thread; ``text``: machine code."""
    name: str
    architecture: int
    threads: int
    registers: int
    text: bytes
    instructions: tuple = ()


# ---- from a cubin to instructions

def disassemble(cubins):
    """[[Function, ...] of each cubin]. All of one architecture go to one run of nvdisasm: a run costs more than a kernel.

    Parameters
    ----------
    cubins : list of bytes

    Raises
    ------
    RuntimeError
        nvdisasm is not there, or does not know the architecture.
    """
    found = [functions(cubin) for cubin in cubins]
    for architecture in sorted({function.architecture for list_ in found for function in list_}):
        mine = [(list_, i) for list_ in found for i, function in enumerate(list_) if function.architecture == architecture]
        offsets, text = [], b""
        for list_, i in mine:
            offsets.append(len(text))
            text += list_[i].text
        instructions = _parse(_nvdisasm(text, architecture))
        for (list_, i), offset in zip(mine, offsets):
            first, last = offset // 16, (offset + len(list_[i].text)) // 16
            list_[i] = list_[i]._replace(instructions=tuple(_moved(one, offset) for one in instructions[first:last]))
    return found


def functions(cubin):
    """The Functions of a cubin, not disassembled yet: an ELF file with a section .text.NAME for each."""
    if cubin[:4] != b"\x7fELF":
        raise ValueError("cubin: got no ELF file")
    flags, = struct.unpack_from("<I", cubin, 48)
    architecture = flags >> 8 & 0xff if cubin[8] >= 8 else flags & 0xff  # byte 8: version of the ABI
    start, = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, start + i * size) for i in range(count)]

    def name(section):
        begin = sections[names][4] + section[0]
        return cubin[begin:cubin.index(b"\0", begin)].decode()

    contents = {name(section): cubin[section[4]:section[4] + section[5]] for section in sections if section[1] != 8}
    symbols = contents[".symtab"], contents[".strtab"]
    registers = {_symbol(*symbols, index): number for attribute, (index, number) in _info(contents.get(".nv.info", b""), "<II")
                 if attribute == 0x2f}  # EIATTR_REGCOUNT
    found = []
    for key, text in contents.items():
        if key.startswith(".text."):
            kernel = key[len(".text."):]
            threads = [x * y * z for attribute, (x, y, z) in _info(contents.get(".nv.info." + kernel, b""), "<III")
                       if attribute == 5]  # EIATTR_MAX_THREADS
            found.append(Function(kernel, architecture, threads[0] if threads else None, registers.get(kernel), text))
    return found


def _info(section, form):
    """(attribute, values) of those records of a .nv.info section that have as many bytes as a `struct` form.

    A record is a byte for how its values are kept, one for the attribute, and 2 bytes: the value, or how many bytes follow.
    """
    place = 0
    while place + 4 <= len(section):
        kept, attribute, size = struct.unpack_from("<BBH", section, place)
        if kept == 4 and size == struct.calcsize(form):
            yield attribute, struct.unpack_from(form, section, place + 4)
        place += 4 + (size if kept == 4 else 0)


def _symbol(symbols, names, index):
    begin, = struct.unpack_from("<I", symbols, 24 * index)
    return names[begin:names.index(b"\0", begin)].decode()


def nvdisasm():
    """The path of nvdisasm: in a wheel of NVIDIA's, or on the PATH.

    Raises
    ------
    RuntimeError
        What to install.
    """
    found = [path for folder in libraries.nvidia_folders()
             for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*", "bin", "nvdisasm")))]
    if found:
        return found[-1]
    found = shutil.which("nvdisasm")
    if not found:
        raise RuntimeError("nvdisasm: not found, needs the package nvidia-cuda-nvdisasm or CUDA's own on the PATH")
    return found


def _nvdisasm(text, architecture):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "text")
        with open(path, "wb") as file:
            file.write(text)
        done = subprocess.run([nvdisasm(), "-hex", "-ndf", "-b", f"SM{architecture}", path],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nvdisasm, architecture {architecture}: {done.stderr.strip()}")
    return done.stdout


_LINE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;?\s+/\* 0x([0-9a-f]{16}) \*/\s*\n\s*/\* 0x([0-9a-f]{16}) \*/")


def _parse(listing):
    return [instruction(int(address, 16), text, int(upper, 16)) for address, text, _, upper in _LINE.findall(listing)]


def instruction(address, text, upper):
    """An Instruction from nvdisasm's text of it ("@!P0 BRA 0x40") and the upper 64-bit word of its encoding."""
    predicate, opcode, operands = re.match(r"(?:@(\S+)\s+)?(\S+)\s*(.*)", text.rstrip(" ;")).groups()
    control = upper >> 41
    return Instruction(address, predicate or "", opcode, operands, control & 15, not control >> 4 & 1, control >> 5 & 7,
                       control >> 8 & 7, control >> 11 & 63)


def _moved(one, offset):
    target = _target(one)
    operands = one.operands if target is None else one.operands.replace(hex(target), hex(target - offset))
    return one._replace(address=one.address - offset, operands=operands)


def _target(one):
    """The address that an instruction names as one to go to, or None."""
    if one.name in ("BRA", "CALL", "BSSY", "JMP", "RET"):
        match = re.search(r"0x[0-9a-f]+$", one.operands)
        return int(match.group(), 16) if match else None
    return None


# ---- kinds of instruction

_KINDS = {
    "FFMA": "FFMA",
    "FADD": "float", "FMUL": "float", "FSEL": "float", "FSETP": "float", "FSET": "float", "FMNMX": "float", "FSWZADD": "float",
    "DADD": "float", "DMUL": "float", "DFMA": "float", "DSETP": "float", "HFMA2": "float", "HADD2": "float", "HMUL2": "float",
    "LDS": "LDS", "LDSM": "LDS", "STS": "STS", "SHFL": "SHFL", "MUFU": "MUFU",
    "LDG": "LDG", "LD": "LDG", "LDGSTS": "LDG", "LDGDEPBAR": "LDG", "DEPBAR": "LDG", "STG": "STG", "ST": "ST",
    "RED": "RED", "REDG": "RED", "ATOM": "RED", "ATOMG": "RED", "ATOMS": "RED",
    "SYNCS": "SYNCS", "STAS": "STAS", "BAR": "BAR", "UCGABAR_ARV": "UCGABAR", "UCGABAR_WAIT": "UCGABAR",
    "MEMBAR": "MEMBAR", "FENCE": "MEMBAR", "ERRBAR": "ERRBAR", "CGAERRBAR": "ERRBAR", "CCTL": "CCTL", "CALL": "CALL", "RET": "CALL",
    "FCHK": "FCHK", "LDL": "LDL", "STL": "STL", "S2R": "S2R", "S2UR": "S2R", "CS2R": "S2R",
    "LDC": "LDC", "ULDC": "LDC", "LDCU": "LDC",
    "BRA": "branch", "BRX": "branch", "EXIT": "branch", "JMP": "branch", "YIELD": "branch",
    "BSSY": "BSSY/BSYNC", "BSYNC": "BSSY/BSYNC", "WARPSYNC": "BSSY/BSYNC", "BREAK": "BSSY/BSYNC", "BMOV": "BSSY/BSYNC",
    "NOP": "other", "VOTE": "other", "VOTEU": "other", "NANOSLEEP": "other",
}
_INTEGER = re.compile(r"U?(I|L|SHF|MOV|SEL|PRMT|VIADD|VIMNMX|P?LOP3|R2UR|POPC|FLO|BREV|SGXT|BMSK|R2P|P2R|X|F2I|I2F|F2F)")
KINDS = ("FFMA", "float", "integer", "LDS.128", "LDS.64", "LDS.32", "STS", "SHFL", "MUFU", "LDG", "STG", "ST", "RED", "SYNCS", "STAS", "BAR",
         "UCGABAR", "MEMBAR", "ERRBAR", "CCTL", "CALL", "FCHK", "LDL", "STL", "S2R", "LDC", "branch", "BSSY/BSYNC", "other")


def kind(one):
    """The kind that an instruction is counted as, one of KINDS."""
    if one.predicate == "!PT":
        return "other"  # never executed: padding
    found = _KINDS.get(one.name)
    if found == "LDS":
        return f"LDS.{8 * width(one)}"
    if found:
        return found
    if one.name.startswith("PLOP3") or _INTEGER.match(one.name):
        return "integer"
    return "other"


def width(one):
    """Bytes that a load or store moves for one thread."""
    for bits in (128, 64):
        if f".{bits}" in one.opcode:
            return bits // 8
    return 4


def count(instructions):
    """{kind: number}, in the order of KINDS, without zeros."""
    numbers = collections.Counter(kind(one) for one in instructions)
    return {key: numbers[key] for key in KINDS if numbers[key]}


# ---- the loop over the steps

class Natural(NamedTuple):
    """A natural loop: its header and its blocks' first addresses."""
    header: int
    blocks: frozenset


class Choice(NamedTuple):
    """At a branch of the path: whether it was taken, and why."""
    address: int
    taken: bool
    why: str


class _Settings(NamedTuple):
    in_shared: int
    tiles: int
    finishes: bool
    ends_step: bool = True


class Path(NamedTuple):
    """Instructions of one step in the order of execution, the blocks they are in, and the weight that chose them."""
    instructions: tuple
    blocks: tuple
    weight: tuple
    settings: _Settings


class _NoWay(Exception):
    """There is no path through a loop."""


class _Graph:
    """Basic blocks of a function, by the address of their first instruction."""

    def __init__(self, instructions):
        by_address = {one.address: one for one in instructions}
        leaders = {instructions[0].address}
        for one in instructions:
            if one.name in ("BRA", "JMP", "BRX", "EXIT", "RET", "CALL", "KILL"):
                leaders.add(one.address + 16)
                if one.name in ("BRA", "JMP"):
                    leaders.add(_target(one))
        starts = sorted(leader for leader in leaders if leader in by_address)
        self.blocks, self.next = {}, {}
        for start, end in zip(starts, starts[1:] + [instructions[-1].address + 16]):
            block = [by_address[address] for address in range(start, end, 16)]
            self.blocks[start] = block
            self.next[start] = [address for address in _successors(block[-1]) if address in by_address]
        self._reachable(starts[0])
        self.before = {start: [] for start in self.blocks}
        for start, following in self.next.items():
            for other in following:
                self.before[other].append(start)
        self.loops = self._loops(starts[0])

    def _reachable(self, start):
        seen, rest = {start}, [start]
        while rest:
            for following in self.next[rest.pop()]:
                if following not in seen:
                    seen.add(following)
                    rest.append(following)
        self.blocks = {key: block for key, block in self.blocks.items() if key in seen}
        self.next = {key: following for key, following in self.next.items() if key in seen}

    def _loops(self, start):
        """Natural loops, those with one header merged."""
        order = self._postorder(start)[::-1]
        place = {block: i for i, block in enumerate(order)}
        above = {start: start}  # immediate dominators (Cooper, Harvey and Kennedy)
        changed = True
        while changed:
            changed = False
            for block in order[1:]:
                new = None
                for other in self.before[block]:
                    if other in above:
                        new = other if new is None else self._meet(above, place, new, other)
                if above.get(block) != new:
                    above[block] = new
                    changed = True
        bodies = {}
        for block, following in self.next.items():
            for header in following:
                if self._meet(above, place, header, block) == header:
                    body = bodies.setdefault(header, {header})
                    rest = [block]
                    while rest:
                        one = rest.pop()
                        if one not in body:
                            body.add(one)
                            rest += self.before[one]
        return [Natural(header, frozenset(body)) for header, body in bodies.items()]

    @staticmethod
    def _meet(above, place, a, b):
        while a != b:
            while place[a] > place[b]:
                a = above[a]
            while place[b] > place[a]:
                b = above[b]
        return a

    def _postorder(self, start):
        order, seen, stack = [], {start}, [(start, iter(self.next[start]))]
        while stack:
            block, rest = stack[-1]
            for following in rest:
                if following not in seen:
                    seen.add(following)
                    stack.append((following, iter(self.next[following])))
                    break
            else:
                order.append(block)
                stack.pop()
        return order


def _successors(last):
    if last.name in ("BRA", "JMP"):
        target = _target(last)
        condition = last.predicate not in ("", "PT") or "," in last.operands
        return [last.address + 16] * condition + ([target] if target is not None else [])
    if last.name in ("EXIT", "RET", "KILL", "BRX"):
        return [last.address + 16] if last.predicate not in ("", "PT") else []
    return [last.address + 16]


EXCHANGES = ("async", "cluster barrier", "grid", "block barrier")


class Loop:
    """The loop over the steps of one of our kernels.

    Attributes
    ----------
    function : Function
    exchange : str
        One of EXCHANGES: how the blocks that share rows tell each other that a state is there.
    instructions : list of Instruction
        All of the loop, executed or not.

    Raises
    ------
    ValueError
        The kernel has no loop with multiply-adds.
    """

    def __init__(self, function):
        self.function = function
        self._graph = graph = _Graph(function.instructions)
        outer = [loop for loop in graph.loops if not any(loop.blocks < other.blocks for other in graph.loops)]
        found = [loop for loop in outer if self._number(loop, "FFMA")]
        if not found:
            raise ValueError(f"{function.name}: got no loop with multiply-adds")
        self.loop = max(found, key=lambda loop: self._number(loop, "FFMA"))
        self.instructions = [one for start in sorted(self.loop.blocks) for one in graph.blocks[start]]
        names = {one.name for one in self.instructions}
        if "STAS" in names:
            self.exchange = "async"
        elif "UCGABAR_WAIT" in names:
            self.exchange = "cluster barrier"
        elif any(map(_polls, self.instructions)):
            self.exchange = "grid"
        else:
            self.exchange = "block barrier"
        self._forbidden = None  # an edge that no path may take
        self._inner = [loop for loop in graph.loops if loop.blocks < self.loop.blocks]

    def _number(self, loop, name):
        return sum(one.name == name for start in loop.blocks for one in self._graph.blocks[start])

    def counts(self):
        """{kind: number} of all of the loop."""
        return count(self.instructions)

    def body(self, header):
        """The instructions of the inner loop with this header."""
        loop = next(loop for loop in self._inner if loop.header == header)
        return [one for start in sorted(loop.blocks) for one in self._graph.blocks[start]]

    def sends(self, one):
        """Whether an instruction is part of what tells the other blocks, or the block's other warps, of the state."""
        return one.name in {"async": ("STAS",), "cluster barrier": ("ST", "UCGABAR_ARV"), "grid": ("RED", "REDG", "ATOMG", "ATOM"),
                            "block barrier": ("STS",)}[self.exchange]

    def waits(self, one):
        """Whether an instruction waits until the state is there. (Within a block, which of the barriers does is for schedule.py.)"""
        return {"async": _tests_phase, "cluster barrier": lambda one: one.name == "UCGABAR_WAIT", "grid": _polls,
                "block barrier": lambda one: one.name == "BAR"}[self.exchange](one)

    def kinds_of_loops(self):
        """{header: "spin", "weights", "tiles" or "copies"} of the inner loops."""
        return {loop.header: self._kind(self.body(loop.header)) for loop in self._inner}

    @staticmethod
    def _kind(body):
        names = {one.name for one in body}
        if "FFMA" in names:
            return "tiles" if names & {"BAR", "STAS", "SHFL"} else "weights"
        return "spin" if any(_polls(one) or _tests_phase(one) for one in body) else "copies"

    def path(self, in_shared=1, tiles=1, finishes=True):
        """The Path of a warp that finishes elements of the state, or of one that has only its part of the product.

        Parameters
        ----------
        in_shared : int
            Passes of the loop over the weights in shared memory, where there is one.
        tiles : int
            Tiles of rows in a step: passes of the loop over them, where there is one; else steps and tiles share one loop, and
            all but a step's last pass go round what ends a step.
        """
        whole = self._find(_Settings(in_shared, tiles, finishes))
        if tiles == 1 or "tiles" in self.kinds_of_loops().values():
            return whole
        before = whole
        if self.exchange != "async":
            before = self._find(whole.settings._replace(ends_step=False))
        return whole._replace(instructions=before.instructions * (tiles - 1) + whole.instructions)

    def _find(self, settings):
        kinds = self.kinds_of_loops()
        passes = {"weights": max(settings.in_shared, 1), "tiles": settings.tiles, "spin": 1, "copies": 1}
        self._passes = {header: passes[what] for header, what in kinds.items()}
        self._spins = {header for header, what in kinds.items() if what == "spin"}
        self._settings = settings
        backs = [(block, self.loop.header) for block in self.loop.blocks if self.loop.header in self._graph.next[block]]
        best = self._best(self.loop, backs)
        if not best:
            raise _NoWay
        weight, blocks = max(best.values(), key=lambda found: found[0])
        return Path(tuple(one for block in blocks for one in self._graph.blocks[block]), blocks, weight, settings)

    def _weight(self, block):
        """What `path` adds up and compares, first things first."""
        instructions = self._graph.blocks[block]
        numbers = collections.Counter(one.name for one in instructions)
        long = sum(max(one.stall, 1) + 20 * (one.wait > 0) for one in instructions)
        calls, waits = -numbers["CALL"], sum(map(self.waits, instructions))
        sends = sum(map(self.sends, instructions))
        if not self._settings.ends_step:
            sends, waits = 0, -waits
        if self._settings.finishes:
            return calls, sends, waits, numbers["FFMA"], long
        return calls, 0, waits, numbers["FFMA"] * (numbers["FFMA"] >= 12), -long

    def _best(self, loop, goals):
        """{edge: (weight, blocks)}: the best way from the loop's header to each edge that leaves its body (or goes back)."""
        inner = [other for other in self._inner if other.blocks < loop.blocks]
        inner = [one for one in inner if not any(one.blocks < other.blocks for other in inner)]
        owner = {block: one for one in inner for block in one.blocks}
        reached = {loop.header: ((0,) * 5, ())}
        done = {}
        for node in self._topological(loop, owner):
            if node not in reached:
                continue
            weight, blocks = reached[node]
            if node in owner:
                edges = self._through(owner[node])
            else:
                edges = {(node, following): (self._weight(node), (node,)) for following in self._graph.next[node]}
            for (source, following), (more, way) in edges.items():
                total = tuple(a + b for a, b in zip(weight, more)), blocks + way
                if (source, following) in goals:
                    if (source, following) not in done or done[source, following][0] < total[0]:
                        done[source, following] = total
                elif following in loop.blocks and following != loop.header and (
                        (source, following) != self._forbidden and not self._retries(source, following)):
                    if following not in reached or reached[following][0] < total[0]:
                        reached[following] = total
        return done

    def _through(self, loop):
        """{edge out of an inner loop: (weight, blocks)} for all of its passes."""
        back = [(block, loop.header) for block in loop.blocks if loop.header in self._graph.next[block]]
        out = [(block, following) for block in loop.blocks for following in self._graph.next[block]
               if following not in loop.blocks]
        best = self._best(loop, back + out)
        times = self._passes[loop.header] - 1
        if not times:
            return {edge: best[edge] for edge in out if edge in best}
        again = max((best[edge] for edge in back if edge in best), key=lambda found: found[0], default=None)
        if again is None:
            return {}
        return {edge: (tuple(times * a + b for a, b in zip(again[0], best[edge][0])), again[1] * times + best[edge][1])
                for edge in out if edge in best}

    def _topological(self, loop, owner):
        """Blocks of a loop's body, each inner loop by its header alone, before those that follow."""
        order, seen = [], set()

        def following(node):
            sources = owner[node].blocks if node in owner else (node,)
            return [owner[other].header if other in owner else other for source in sources for other in self._graph.next[source]
                    if other in loop.blocks and other != loop.header and other not in (owner[node].blocks if node in owner else ())]

        stack = [(loop.header, iter(following(loop.header)))]
        seen.add(loop.header)
        while stack:
            node, rest = stack[-1]
            for other in rest:
                if other not in seen:
                    seen.add(other)
                    stack.append((other, iter(following(other))))
                    break
            else:
                order.append(node)
                stack.pop()
        return order[::-1]

    def _retries(self, source, following):
        """Whether an edge goes from a first try to wait to a loop that tries again: not taken where the state is there."""
        return following in self._spins and any(map(self.waits, self._graph.blocks[source]))

    def choices(self, path):
        """[`Choice`, ...] at the branches of a Path of this loop: the best path the other way is what it lost to."""
        found = {}
        for block, following in zip(path.blocks, path.blocks[1:] + path.blocks[:1]):
            options = set(self._graph.next[block])
            if len(options) > 1 and block not in found:
                other, = options - {following}
                last = self._graph.blocks[block][-1]
                found[block] = Choice(last.address, following == _target(last), self._why(path, (block, following), (block, other)))
        return list(found.values())

    def _why(self, path, edge, other):
        if other[1] not in self.loop.blocks:
            return "stays in the loop"
        if self._retries(*other):
            return "the state is there"
        if any(edge in path_edges and other in path_edges for path_edges in [set(zip(path.blocks, path.blocks[1:]))]):
            return "both, in passes of an inner loop"
        self._forbidden = edge
        try:
            weight = self._find(path.settings).weight
        except _NoWay:
            return "the only way"
        finally:
            self._forbidden = None
        for what, mine, others in zip(("calls nothing", "sends", "waits", "multiplies"), path.weight, weight):
            if mine != others:
                return what
        return f"{'longer' if path.settings.finishes else 'shorter'} by {abs(path.weight[4] - weight[4])}"

    def gates(self, most_besides_ffma=None):
        """What is wrong with the loop: a list of sentences, empty where nothing is.

        Parameters
        ----------
        most_besides_ffma : int, optional
            The most instructions on the path of one tile of rows that are no multiply-add.
        """
        numbers, sentences = self.counts(), []
        for what, why in (("CALL", "a slow path, of a division for example"), ("FCHK", "a division"), ("LDL", "a spilled register"),
                          ("STL", "a spilled register")):
            if numbers.get(what):
                sentences.append(f"{self.function.name}: got {numbers[what]} {what} in the loop over the steps, needs none: {why}")
        if self.exchange == "async" and numbers.get("MEMBAR"):
            sentences.append(f"{self.function.name}: got {numbers['MEMBAR']} MEMBAR in the loop over the steps, needs none: "
                             "each waits for all that the warp has written to global memory")
        narrow = self._narrow_reads()
        if narrow:
            sentences.append(f"{self.function.name}: got {len(narrow)} reads of the state narrower than 16 bytes, needs none "
                             f"(the first at {narrow[0].address:#x})")
        if most_besides_ffma is not None:
            path = self.path().instructions
            besides = len(path) - sum(one.name == "FFMA" for one in path)
            if besides > most_besides_ffma:
                sentences.append(f"{self.function.name}: got {besides} instructions a step that are no multiply-add, needs at most "
                                 f"{most_besides_ffma}")
        return sentences

    def _narrow_reads(self):
        """Reads from shared memory of less than 16 bytes whose value goes into a multiply-add of the product."""
        path = self.path().instructions
        loaded, narrow = {}, []
        for one in path:
            if one.name == "LDS" and one.predicate != "!PT":
                first = int(re.match(r"R(\d+)", one.operands).group(1)) if one.operands.startswith("R") and one.operands[1] != "Z" else None
                if first is not None:
                    for register in range(first, first + width(one) // 4):
                        loaded[f"R{register}"] = one
                continue
            registers = re.findall(r"\bR\d+\b", one.operands)
            if one.name == "FFMA" and not re.search(r"-?\d+\.\d|INF|\bc\[", one.operands):
                for register in registers[1:]:
                    source = loaded.get(register)
                    if source is not None and width(source) < 16 and source not in narrow:
                        narrow.append(source)
            if registers and one.name not in ("STS", "STG", "ST", "STAS"):
                loaded.pop(registers[0], None)
        return narrow


def _polls(one):
    """Reads what another block writes: ld.acquire or a volatile load."""
    return one.name in ("LDG", "LD") and (".STRONG." in one.opcode)


def _tests_phase(one):
    return one.name == "SYNCS" and "PHASECHK" in one.opcode
