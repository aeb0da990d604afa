"""A kernel's machine code: from a cubin to instructions with their control codes, by nvdisasm (PyPI: nvidia-cuda-nvdisasm).

The control code of an instruction is in the upper of its two 64-bit words (Volta and later; Jia, Maggioni, Staiger and
Scarpazza, "Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking", 2018, section 2.1):
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
    """One instruction; for the last five see the top of this file."""
    address: int
    predicate: str  # "", "P0", "!UP1", ...
    opcode: str     # with its modifiers
    operands: str
    stall: int
    switch: bool    # go on with another warp
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
    """One kernel."""
    name: str
    architecture: int  # 90 for sm_90
    threads: int       # of a block, as its launch bounds say, or None
    registers: int     # of a thread
    text: bytes        # its machine code
    instructions: tuple = ()


# ---- from a cubin to instructions

def disassemble(cubins):
    """[[Function, ...] of each cubin]. All of one architecture go to one run of nvdisasm, which costs more than a kernel.

    Parameters
    ----------
    cubins : list of bytes

    Raises
    ------
    RuntimeError
        nvdisasm is not there, or does not know the architecture.
    """
    found = [functions(cubin) for cubin in cubins]
    for architecture in sorted({function.architecture for functions_ in found for function in functions_}):
        mine = [(functions_, i) for functions_ in found for i, function in enumerate(functions_)
                if function.architecture == architecture]
        instructions = _parse(_nvdisasm(b"".join(functions_[i].text for functions_, i in mine), architecture))
        offset = 0
        for functions_, i in mine:
            end = offset + len(functions_[i].text)
            moved = [_moved(one, offset) for one in instructions[offset // 16:end // 16]]
            functions_[i] = functions_[i]._replace(instructions=tuple(_leaving(moved)))
            offset = end
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
    registers = {_symbol(*symbols, index): number
                 for attribute, (index, number) in _info(contents.get(".nv.info", b""), "<II")
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
        The package to install.
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
                              capture_output=True, text=True, check=False)
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
    place = target(one)
    operands = one.operands if place is None else one.operands.replace(hex(place), hex(place - offset))
    return one._replace(address=one.address - offset, operands=operands)


_ENDS = ("EXIT", "RET", "BRA", "BRX", "JMP", "CALL")  # of what is executed one after the other


def _leaving(instructions):
    """A call of code that ends in EXIT and never returns, by which ptxas leaves a loop at times (seen on sm_80 to 89), is no
    call: it is made a branch."""
    for one in instructions:
        place = target(one)
        ends = [] if one.name != "CALL" or place is None else [
            other.name for other in instructions[place // 16:] if not other.predicate and other.name in _ENDS]
        leaves = ends[:1] == ["EXIT"]
        yield one._replace(opcode="BRA") if leaves else one


def target(one):
    """The address that an instruction names as one to go to, or None."""
    if one.name in ("BRA", "CALL", "BSSY", "JMP", "RET"):
        match = re.search(r"0x[0-9a-f]+$", one.operands)
        return int(match.group(), 16) if match else None
    return None


# ---- kinds of instruction

_KINDS = {
    "FFMA": "FFMA",
    "FADD": "float", "FMUL": "float", "FSEL": "float", "FSETP": "float", "FSET": "float", "FMNMX": "float",
    "DADD": "float", "DMUL": "float", "DFMA": "float", "DSETP": "float",
    "HFMA2": "float", "HADD2": "float", "HMUL2": "float",
    "LDS": "LDS", "LDSM": "LDS", "STS": "STS", "SHFL": "SHFL", "MUFU": "MUFU",
    "LDG": "LDG", "LD": "LDG", "LDGSTS": "LDG", "LDGDEPBAR": "LDG", "DEPBAR": "LDG", "STG": "STG", "ST": "ST",
    "RED": "RED", "REDG": "RED", "ATOM": "RED", "ATOMG": "RED", "ATOMS": "RED",
    "SYNCS": "SYNCS", "STAS": "STAS", "BAR": "BAR", "UCGABAR_ARV": "UCGABAR", "UCGABAR_WAIT": "UCGABAR",
    "MEMBAR": "MEMBAR", "FENCE": "MEMBAR", "ERRBAR": "ERRBAR", "CGAERRBAR": "ERRBAR", "CCTL": "CCTL",
    "CALL": "CALL", "FCHK": "FCHK", "LDL": "LDL", "STL": "STL", "S2R": "S2R", "S2UR": "S2R", "CS2R": "S2R",
    "LDC": "LDC", "ULDC": "LDC", "LDCU": "LDC",
    "BRA": "branch", "BRX": "branch", "EXIT": "branch", "JMP": "branch", "RET": "branch", "YIELD": "branch",
    "BSSY": "BSSY/BSYNC", "BSYNC": "BSSY/BSYNC", "WARPSYNC": "BSSY/BSYNC", "BREAK": "BSSY/BSYNC",
    "BMOV": "BSSY/BSYNC",
    "NOP": "other", "VOTE": "other", "VOTEU": "other", "NANOSLEEP": "other",
}
_INTEGER = re.compile(r"U?(I|L|SHF|MOV|SEL|PRMT|VIADD|VIMNMX|PLOP3|R2UR|POPC|FLO|BREV|SGXT|BMSK|R2P|P2R|F2I|F2F)")
KINDS = ("FFMA", "float", "integer", "LDS.128", "LDS.64", "LDS.32", "STS", "SHFL", "MUFU", "LDG", "STG", "ST", "RED",
         "SYNCS", "STAS", "BAR", "UCGABAR", "MEMBAR", "ERRBAR", "CCTL", "CALL", "FCHK", "LDL", "STL", "S2R", "LDC", "branch",
         "BSSY/BSYNC", "other")


def kind(one):
    """The kind that an instruction is counted as, one of KINDS."""
    if one.predicate == "!PT":
        return "other"  # never executed: padding
    found = _KINDS.get(one.name)
    if found == "LDS":
        return f"LDS.{8 * width(one)}"
    if found:
        return found
    return "integer" if _INTEGER.match(one.name) else "other"


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
