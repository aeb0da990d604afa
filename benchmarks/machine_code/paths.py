"""The loop over the steps in a kernel's machine code, and the path that a warp takes through it.

Which way a branch goes is not in the code. Of all ways through one pass of the loop, `Loop.path` takes the one that
  1. calls nothing: slow paths, of a division for example, are calls;
  2. sends the most: a block's last step, which sends nothing, is one of many; and waits for the state;
  3. has the most multiply-adds: tanh and not relu;
  4. is the longest.
All other warps wait for the one that takes this path. The shortest way with all of the product on it is that of a warp which
has nothing to finish. `Loop.choices` says for every branch which of these decided; "longer" is a guess.

A loop that waits by trying again is passed once, or not at all where a first try stands before it: the state is there. How
often loops over weights in shared memory and over tiles of rows are passed is the caller's to say.
"""
import collections
import re
from typing import NamedTuple

from . import sass

EXCHANGES = ("async", "cluster barrier", "grid", "block barrier")
_PRODUCT = 12  # multiply-adds of a block that is part of the product, at the least


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
                    leaders.add(sass.target(one))
        starts = sorted(leader for leader in leaders if leader in by_address)
        self.blocks, self.next = {}, {}
        for start, end in zip(starts, starts[1:] + [instructions[-1].address + 16]):
            block = [by_address[address] for address in range(start, end, 16)]
            self.blocks[start] = block
            self.next[start] = [address for address in _successors(block[-1]) if address in by_address]
        reached = _postorder(starts[0], self.next.__getitem__)
        self.blocks = {start: self.blocks[start] for start in reached}
        self.next = {start: self.next[start] for start in reached}
        self.before = {start: [] for start in self.blocks}
        for start, following in self.next.items():
            for other in following:
                self.before[other].append(start)
        self.loops = self._loops(starts[0])

    def _loops(self, start):
        """Natural loops, those with one header merged."""
        order = _postorder(start, self.next.__getitem__)[::-1]
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


def _postorder(start, following):
    """All nodes that can be reached from a node, each after those that follow it (but for loops)."""
    order, seen, stack = [], {start}, [(start, iter(following(start)))]
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
    return order


def _successors(last):
    if last.name in ("BRA", "JMP"):
        target = sass.target(last)
        condition = last.predicate not in ("", "PT") or "," in last.operands
        return [last.address + 16] * condition + ([target] if target is not None else [])
    if last.name in ("EXIT", "RET", "KILL", "BRX"):
        return [last.address + 16] if last.predicate not in ("", "PT") else []
    return [last.address + 16]


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
        return sass.count(self.instructions)

    def body(self, header):
        """The instructions of the inner loop with this header."""
        loop = next(loop for loop in self._inner if loop.header == header)
        return [one for start in sorted(loop.blocks) for one in self._graph.blocks[start]]

    def sends(self, one):
        """Whether an instruction helps to publish the state to the other blocks, or to the block's other warps."""
        return one.name in {"async": ("STAS",), "cluster barrier": ("ST", "UCGABAR_ARV"), "grid": ("RED", "REDG"),
                            "block barrier": ("STS",)}[self.exchange]

    def waits(self, one):
        """Whether an instruction waits until the state is there; within a block, any barrier."""
        if self.exchange == "async":
            return _tests_phase(one)
        if self.exchange == "grid":
            return _polls(one)
        return one.name == {"cluster barrier": "UCGABAR_WAIT", "block barrier": "BAR"}[self.exchange]

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
            Tiles of rows in a step: passes of the loop over them, where there is one; else steps and tiles share one
            loop, and all but a step's last pass go round what ends a step.
        """
        whole = self._find(_Settings(in_shared, tiles, finishes))
        if tiles == 1 or "tiles" in self.kinds_of_loops().values():
            return whole
        before = whole.instructions
        if self.exchange != "async":
            found = self._find(whole.settings._replace(ends_step=False)).instructions
            # A barrier with a predicate is one that only a step's end executes.
            before = tuple(one for one in found if not (one.name == "BAR" and one.predicate))
        return whole._replace(instructions=before * (tiles - 1) + whole.instructions)

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
        """The weight that `path` adds up and compares, the most important number first."""
        instructions = self._graph.blocks[block]
        numbers = collections.Counter(one.name for one in instructions)
        long = sum(max(one.stall, 1) + 20 * (one.wait > 0) for one in instructions)
        calls, waits = -numbers["CALL"], sum(map(self.waits, instructions))
        sends = sum(map(self.sends, instructions))
        if not self._settings.ends_step:
            # No meeting, and of the copies to shared memory only what must be: those of the next tiles may stay under way.
            sends = -waits - numbers["BAR"] - numbers["LDGDEPBAR"]
            waits = sum(int(one.operands.rsplit(", ", 1)[1], 16) for one in instructions if one.name == "DEPBAR")
        if self._settings.finishes:
            return calls, sends, waits, numbers["FFMA"], long
        return calls, 0 if self._settings.ends_step else sends, waits, numbers["FFMA"] * (numbers["FFMA"] >= _PRODUCT), -long

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
            for edge, (more, way) in edges.items():
                if edge == self._forbidden or self._retries(*edge):
                    continue
                total = tuple(a + b for a, b in zip(weight, more)), blocks + way
                following = edge[1]
                if edge in goals:
                    found, key = done, edge
                elif following in loop.blocks and following != loop.header:
                    found, key = reached, following
                else:
                    continue
                if key not in found or found[key][0] < total[0]:
                    found[key] = total
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
        def following(node):
            inside = owner[node].blocks if node in owner else frozenset([node])
            others = [other for source in inside for other in self._graph.next[source]]
            return [owner[other].header if other in owner else other for other in others
                    if other in loop.blocks - inside and other != loop.header]

        return _postorder(loop.header, following)[::-1]

    def _retries(self, source, following):
        """Whether an edge goes from a first try to wait to a loop that tries again: not taken where the state is there."""
        return following in self._spins and any(map(self.waits, self._graph.blocks[source]))

    def choices(self, path):
        """[`Choice`, ...] at the branches of a Path of this loop, each with the best path through the other way."""
        found = {}
        for block, following in zip(path.blocks, path.blocks[1:] + path.blocks[:1]):
            options = set(self._graph.next[block])
            if len(options) > 1 and block not in found:
                other, = options - {following}
                last = self._graph.blocks[block][-1]
                why = self._why(path, (block, following), (block, other))
                found[block] = Choice(last.address, following == sass.target(last), why)
        return list(found.values())

    def _why(self, path, edge, other):
        if other[1] not in self.loop.blocks:
            return "stays in the loop"
        if self._retries(*other):
            return "the state is there"
        if other in zip(path.blocks, path.blocks[1:]):
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
        """Faults of the loop: a list of sentences, empty if there are none.

        Parameters
        ----------
        most_besides_ffma : int, optional
            The most instructions on the path of one tile of rows that are no multiply-add.
        """
        numbers = self.counts()
        wrong = [f"{numbers[what]} {what} in the loop over the steps, needs none: {why}" for what, why in (
            ("CALL", "a slow path, of a division for example"), ("FCHK", "a division"), ("LDL", "a spilled register"),
            ("STL", "a spilled register")) if what in numbers]
        if self.exchange == "async" and "MEMBAR" in numbers:
            wrong.append(f"{numbers['MEMBAR']} MEMBAR in the loop over the steps, needs none: each waits for all that the "
                         "warp has written to global memory")
        narrow = self._narrow_reads()
        if narrow:
            wrong.append(f"{len(narrow)} reads of the state narrower than 16 bytes, needs none "
                         f"(the first at {narrow[0].address:#x})")
        if most_besides_ffma is not None:
            besides = sum(one.name != "FFMA" for one in self.path().instructions)
            if besides > most_besides_ffma:
                wrong.append(f"{besides} instructions a step that are no multiply-add, needs at most {most_besides_ffma}")
        return [f"{self.function.name}: got {what}" for what in wrong]

    def _narrow_reads(self):
        """Reads from shared memory of less than 16 bytes whose value goes into a multiply-add of the product."""
        loaded, narrow = {}, []  # what was read into each register
        for one in self.path().instructions:
            registers = re.findall(r"\bR(\d+)\b", one.operands)
            if one.name == "LDS" and one.predicate != "!PT":
                first = int(registers[0])
                loaded.update((str(register), one) for register in range(first, first + sass.width(one) // 4))
            elif one.name in ("STS", "STG", "ST", "STAS"):
                continue
            elif registers:
                constants = re.search(r"\d\.\d|INF", one.operands)  # of tanh's polynomial
                if one.name == "FFMA" and not constants:
                    sources = [loaded[register] for register in registers[1:] if register in loaded]
                    narrow += [source for source in sources if sass.width(source) < 16 and source not in narrow]
                loaded.pop(registers[0], None)
        return narrow


def _polls(one):
    """Reads a counter that other blocks write: ld.acquire. (Wider ones are ld.global.cg.)"""
    return one.name in ("LDG", "LD") and ".STRONG." in one.opcode and sass.width(one) == 4


def _tests_phase(one):
    return one.name == "SYNCS" and "PHASECHK" in one.opcode
