"""The devices that ``--ctx`` names, in MXNet's words: cpu(0), gpu(1). Needs no library."""
import re
from typing import List, NamedTuple


class Context(NamedTuple):
    kind: str  # "cpu" or "gpu"
    number: int

    def __str__(self):
        return f"{self.kind}({self.number})"


def parsed(names: str) -> List[Context]:
    """The contexts in "cpu(0),cpu(1)" or "gpu(0),gpu(1)". A ValueError if one is wrong or comes twice."""
    found = []
    for name in names.split(","):
        known = re.fullmatch(r"\s*(cpu|gpu)\(([0-9]{1,3})\)\s*", name)
        if not known:
            raise ValueError(f"ctx: got {name!r}, needs cpu(0), or several such as cpu(0),cpu(1) or gpu(0),gpu(1)")
        context = Context(known[1], int(known[2]))
        if context in found:
            raise ValueError(f"ctx: got {name.strip()} twice")
        found.append(context)
    return found
