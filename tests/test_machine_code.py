"""The machine-code report: control codes, loops and paths, the walk by hand, and gates that find what is planted."""
import re

import pytest
from rnn_ops_benchmarks.machine_code import __main__ as command
from rnn_ops_benchmarks.machine_code import paths, predict, sass, schedule
from rnn_ops_benchmarks.machine_code import report as machine_code

from rnn_ops.backends.cuda import compiler, variants

# A step as small as it can be: a state of 128 floats through st.async, or within a block through a block barrier.
# The macros plant what the gates are for.
TEXT = r"""
#define SHARED(place) static_cast<unsigned>(__cvta_generic_to_shared(place))
extern "C" __global__ void __launch_bounds__(THREADS, 1) small(const float4* weights, float* h, int steps, float by) {
  extern __shared__ float4 memory[];
  float4* state = memory + 1;
  unsigned long long* barriers = reinterpret_cast<unsigned long long*>(memory);
  float4 w[16];
  for (int i = 0; i < 16; i++) w[i] = weights[i * 128 + threadIdx.x];
  for (int n = 0; n < steps; n++) {
#ifdef ASYNC
    if (n > 0) {
      unsigned done;
      do {
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;"
                     " selp.u32 %0, 1, 0, p;}"
                     : "=r"(done) : "r"(SHARED(barriers + (n & 1))), "r"((n - 1) >> 1 & 1) : "memory");
      } while (!done);
    }
#endif
    float4 sum = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 4; i++) {
#ifdef NARROW
      const float* s = reinterpret_cast<const float*>(state) + (n & 1) * 128 + threadIdx.x % 8 * 17 + i * 5;
      const float4 v = {s[0], s[1], s[2], s[3]};
#else
      const float4 v = state[(n & 1) * 32 + threadIdx.x % 8 + 8 * i];
#endif
      const float4* u = w + 4 * i;
      sum.x = fmaf(v.x, u[0].x, fmaf(v.y, u[0].y, fmaf(v.z, u[0].z, fmaf(v.w, u[0].w, sum.x))));
      sum.y = fmaf(v.x, u[1].x, fmaf(v.y, u[1].y, fmaf(v.z, u[1].z, fmaf(v.w, u[1].w, sum.y))));
      sum.z = fmaf(v.x, u[2].x, fmaf(v.y, u[2].y, fmaf(v.z, u[2].z, fmaf(v.w, u[2].w, sum.z))));
      sum.w = fmaf(v.x, u[3].x, fmaf(v.y, u[3].y, fmaf(v.z, u[3].z, fmaf(v.w, u[3].w, sum.w))));
    }
#ifdef DIVIDE
    sum.x = sum.x / by;
#endif
    h[n * 128 + threadIdx.x] = sum.y;
#ifdef FENCE
    __threadfence();
#endif
#ifdef ASYNC
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::
                 "r"(SHARED(state + (n + 1 & 1) * 32 + threadIdx.x)), "f"(sum.x), "f"(sum.y), "f"(sum.z), "f"(sum.w),
                 "r"(SHARED(barriers + (n + 1 & 1))) : "memory");
#else
    state[(n + 1 & 1) * 32 + threadIdx.x / 4] = sum;
    __syncthreads();
#endif
  }
}
"""


def small(*macros, threads=128):
    """The machine code of TEXT with some macros defined."""
    words = ["--std=c++17", "-ftz=true", f"-DTHREADS={threads}", *(f"-D{macro}" for macro in macros)]
    return compiler.find(90).compile(TEXT, words, 90).cubin


def gates(*macros, threads=128, most_besides_ffma=None):
    return machine_code.report(small(*macros, threads=threads), most_besides_ffma).gates


def made(*lines, threads=32):
    """A Function of lines (text, stall, write barrier, read barrier, wait mask), at addresses 0, 16, ..."""
    instructions = []
    for number, (text, stall, write, read, wait) in enumerate(lines):
        predicate, opcode, operands = re.match(r"(?:@(\S+) )?(\S+) ?(.*)", text).groups()
        instructions.append(
            sass.Instruction(16 * number, predicate or "", opcode, operands, stall, False, write, read, wait))
    return sass.Function("made", 90, threads, 32, b"", tuple(instructions))


def plain(text, stall=1):
    return text, stall, 7, 7, 0


# ---- control codes

@pytest.mark.parametrize("text, upper, expected", [
    # (stall, switch, write, read, wait), worked out with pencil and paper from ptxas's own encodings
    ("LDC R1, c[0x0][0x28] ;", 0x000fe20000000800, (1, False, 7, 7, 0)),
    ("S2R R2, SR_TID.X ;", 0x000e2e0000002100, (7, False, 0, 7, 0)),
    ("ISETP.GE.OR P4, PT, R86, UR4, P1 ;", 0x000fc60008f86670, (3, True, 7, 7, 0)),
    ("LDS.128 R4, [R75] ;", 0x001e680000000c00, (4, False, 1, 7, 0b000001)),
    ("FFMA.FTZ R72, R4.reuse, R21, RZ ;", 0x046fe200000100ff, (1, False, 7, 7, 0b000110)),
    ("LDG.E R3, desc[UR8][R6.64] ;", 0x000162000c1e1900, (1, False, 5, 0, 0)),
    ("STAS.128 [R74.64], R68 ;", 0x0001e2000c000c3f, (1, False, 7, 0, 0)),
    ("@P0 BRA 0x4f90 ;", 0x007fea0003800000, (5, False, 7, 7, 0b000111)),
])
def test_control_codes(text, upper, expected):
    one = sass.instruction(0x40, text, upper)
    assert (one.stall, one.switch, one.write, one.read, one.wait) == expected
    assert str(one) == text.rstrip(" ;") and one.address == 0x40


@pytest.mark.parametrize("macros", [(), ("ASYNC",), ("DIVIDE",)])
@pytest.mark.slow
def test_whoever_uses_a_loaded_value_has_waited_for_it(macros):
    """What makes a control code one: a load names a barrier, and its value's first user, or one before, waits for it."""
    function, = sass.disassemble([small(*macros)])[0]
    seen = 0
    for place, one in enumerate(function.instructions):
        if one.name not in ("LDS", "LDG") or one.predicate == "!PT":
            continue
        register = one.operands.split(",")[0]
        waited = False
        for other in function.instructions[place + 1:]:
            # A load without a barrier of its own is covered by the next one that has one: they come back in order.
            waited = waited or bool(one.write != sass.NONE and other.wait >> one.write & 1)
            if re.search(rf"\b{register}\b", other.operands.split(",", 1)[-1]) and other.name == "FFMA":
                assert waited or one.write == sass.NONE, (str(one), str(other))
                seen += one.write != sass.NONE
                break
            if other.name in ("BRA", "EXIT"):
                break
    assert seen >= 2


# ---- from a cubin to functions

def test_a_cubin_s_functions():
    function, = sass.functions(small())
    assert (function.name, function.architecture, function.threads) == ("small", 90, 128)
    assert 64 < function.registers <= 255  # 64 weights
    with pytest.raises(ValueError, match="cubin: got no ELF file"):
        sass.functions(b"nothing of the kind")


@pytest.mark.slow
def test_one_run_disassembles_many(monkeypatch):
    """Also of several architectures; branches of each go to places in itself."""
    runs = []
    real = sass._nvdisasm
    monkeypatch.setattr(sass, "_nvdisasm", lambda text, architecture: runs.append(architecture) or real(text, architecture))
    older = compiler.find(80).compile(TEXT, ["--std=c++17", "-DTHREADS=128"], 80).cubin
    cubins = [small(), older, small("ASYNC"), small("DIVIDE")]
    together = sass.disassemble(cubins)
    assert runs == [80, 90]
    for cubin, functions in zip(cubins, together):
        assert functions == sass.disassemble([cubin])[0]
        function, = functions
        assert [one.address for one in function.instructions] == list(range(0, len(function.text), 16))
        assert paths.Loop(function).counts()["FFMA"] >= 64


def test_nvdisasm_is_missed_with_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="nvdisasm: not found, needs the package nvidia-cuda-nvdisasm"):
        sass.nvdisasm()


@pytest.mark.parametrize("architecture", [75, 80])
@pytest.mark.slow
def test_older_architectures(architecture):
    """ptxas for sm_80 leaves a loop by a call of an EXIT, which is none; before sm_80 the grid's copies are loads past L1,
    which do not poll."""
    for family, rows in (("resident", 2), ("grid", 1)):
        tile, blocks = next((tile, blocks) for tile, blocks in variants.tiles(family, architecture)
                            if tile.k == (128 if family == "resident" else 1024) and tile.rows == rows)
        kernel = variants.Variant(family, tile, blocks or 8).kernel("Forward")
        found = machine_code.report(compiler.compiled(kernel, architecture).cubin, **machine_code.arguments_of(tile))
        assert found.gates == [] and found.prediction.cycles > found.prediction.busy


# ---- loops and paths

def addresses(path):
    return [one.address // 16 for one in path.instructions]


def test_a_path_calls_nothing_and_multiplies():
    loop = paths.Loop(made(
        plain("BAR.SYNC 0x0"),
        plain("FFMA R0, R1, R2, R3"),
        plain("@P0 BRA 0x40"),       # over the call
        plain("CALL.REL 0xb0"),
        plain("@P1 BRA 0x70"),       # over relu, which is longer
        plain("FFMA R0, R1, R2, R3"),
        plain("BRA 0x90"),
        plain("FADD R0, R1, R2", 15),
        plain("FADD R0, R1, R2", 15),
        plain("@P2 BRA 0x0"),
        plain("EXIT"),
        plain("RET.REL 0x40")))
    path = loop.path()
    assert addresses(path) == [0, 1, 2, 4, 5, 6, 9]
    assert [(choice.address // 16, choice.taken, choice.why) for choice in loop.choices(path)] == [
        (2, True, "calls nothing"), (4, False, "multiplies"), (9, True, "stays in the loop")]
    assert loop.counts()["CALL"] == 1


def test_a_guess_is_called_one():
    loop = paths.Loop(made(
        plain("BAR.SYNC 0x0"), plain("FFMA R0, R1, R2, R3"), plain("@P0 BRA 0x50"), plain("MOV R0, R1", 3),
        plain("MOV R0, R1", 4),
        plain("@P1 BRA 0x0"), plain("EXIT")))
    path = loop.path()
    assert addresses(path) == [0, 1, 2, 3, 4, 5]
    assert loop.choices(path)[0] == paths.Choice(0x20, False, "longer by 7")
    path = loop.path(finishes=False)
    assert addresses(path) == [0, 1, 2, 5]
    assert loop.choices(path)[0] == paths.Choice(0x20, True, "shorter by 7")


def test_a_path_sends():
    """The last step, which sends nothing, is long; the path is that of the others."""
    loop = paths.Loop(made(
        plain("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R0]"),
        plain("@!P0 BRA 0x0"),
        plain("FFMA R0, R1, R2, R3"),
        plain("@P1 BRA 0x60"),
        plain("STAS.128 [R2.64], R4"),
        plain("BRA 0x90"),
        plain("MOV R0, R1", 15), plain("MOV R0, R1", 15), plain("MOV R0, R1", 15),
        plain("@P2 BRA 0x0"),
        plain("EXIT")))
    # The first try and the loop over the steps begin at the same place: one loop.
    assert loop.exchange == "async"
    path = loop.path()
    assert addresses(path) == [0, 1, 2, 3, 4, 5, 9]
    assert [choice.why for choice in loop.choices(path)][1] == "sends"


def test_inner_loops():
    loop = paths.Loop(made(
        plain("MOV R0, R1"),                                 # 0  a step
        plain("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R0]"),    # 1    a tile of rows
        plain("@!P0 BRA 0xb0"),                              # 2
        plain("LDS.128 R4, [R0]"),                           # 3      weights in shared memory
        plain("FFMA R0, R1, R2, R3"),                        # 4
        plain("@P1 BRA 0x30"),                               # 5
        plain("STAS.128 [R2.64], R4"),                       # 6
        plain("SHFL.IDX R0, R1, R2, R3"),                    # 7
        plain("@P2 BRA 0x10"),                               # 8
        plain("@P3 BRA 0x0"),                                # 9
        plain("EXIT"),                                       # 10
        plain("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R0]"),    # 11 tries again
        plain("@P0 BRA 0x30"),                               # 12
        plain("BRA 0xb0")))                                  # 13
    assert {header // 16: kind for header, kind in loop.kinds_of_loops().items()} == {1: "tiles", 3: "weights", 11: "spin"}
    assert addresses(loop.path()) == list(range(10))
    chunk, tile = [3, 4, 5], [6, 7, 8]
    assert addresses(loop.path(in_shared=3, tiles=2)) == [0] + 2 * ([1, 2] + 3 * chunk + tile) + [9]


def test_steps_and_tiles_in_one_loop():
    """What ends a step is done by its last pass alone: a barrier with a predicate, a meeting of blocks behind a branch."""
    loop = paths.Loop(made(plain("FFMA R0, R1, R2, R3"), plain("@P0 BAR.SYNC 0x0"), plain("@P1 BRA 0x0"), plain("EXIT")))
    assert addresses(loop.path(tiles=3)) == 2 * [0, 2] + [0, 1, 2]
    loop = paths.Loop(made(
        plain("BAR.SYNC 0x0"),                               # 0 the copies of all have come
        plain("FFMA R0, R1, R2, R3"),                        # 1
        plain("@P0 BRA 0x90"),                               # 2 not the last tile of a step
        plain("BAR.SYNC 0x0"),                               # 3
        plain("RED.E.ADD.STRONG.GPU [R0], R2"),              # 4
        plain("LDG.E.STRONG.GPU R2, [R0]"),                  # 5
        plain("@!P1 BRA 0x50"),                              # 6
        plain("BAR.SYNC 0x0"),                               # 7
        plain("LDGDEPBAR"),                                  # 8 the first tile of the next step
        plain("@P2 BRA 0xc0"),                               # 9
        plain("DEPBAR.LE SB0, 0x1"),                         # 10 while the next tile is under way
        plain("BRA 0xd0"),                                   # 11
        plain("DEPBAR.LE SB0, 0x0", 15),                     # 12 there is none
        plain("@P3 BRA 0x0"),                                # 13
        plain("EXIT")))
    assert loop.exchange == "grid"
    last = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13]
    assert addresses(loop.path()) == last
    assert addresses(loop.path(tiles=3)) == 2 * [0, 1, 2, 9, 10, 11, 13] + last


def test_a_kernel_without_such_a_loop():
    with pytest.raises(ValueError, match="made: got no loop with multiply-adds"):
        paths.Loop(made(plain("FFMA R0, R1, R2, R3"), plain("EXIT")))


# ---- the walk

STEP = (
    ("BAR.SYNC 0x0", 6, 7, 7, 0),              # 0: to the next instruction 25, the barrier's
    ("LDS.128 R4, [R0]", 4, 0, 7, 0),          # 25
    ("FFMA R8, R4, R20, R8", 4, 7, 7, 1),      # 25 + 33 = 58
    ("STS [R1], R8", 1, 7, 1, 0),              # 62
    ("MUFU.EX2 R9, R8", 1, 2, 7, 0),           # 63
    ("MUFU.RCP R10, R8", 1, 3, 7, 0),          # 64, but its unit is busy until 71
    ("FADD R9, R9, R9", 4, 7, 7, 0b000100),    # 63 + 20 = 83
    ("FADD R10, R10, R10", 4, 7, 7, 0b001000),  # 71 + 20 = 91
    ("ISETP.GE P0, PT, R2, R3, PT", 13, 7, 7, 0b000010),  # 95; the store has long read its operands
    ("@P0 BRA 0x0", 5, 7, 7, 0),               # 108
    ("EXIT", 5, 7, 7, 0))                      # a step: 113


def test_a_walk_by_hand():
    walk = schedule.Walk(paths.Loop(made(*STEP)), pairs=False)
    assert walk.predict().cycles == 113
    events = walk.listing()
    assert [event.cycle - events[0].cycle for event in events] == [0, 25, 58, 62, 63, 64, 83, 91, 95, 108]
    assert [(event.waited, event.why) for event in events if event.waited] == [
        (29, "scoreboard 0"), (18, "scoreboard 2"), (4, "scoreboard 3")]


def test_warps_of_one_scheduler_share_its_pipes():
    """Two warps on each: the second one's multiply-add is a cycle later; its functions wait for those of the first."""
    # The second warp: LDS at 26. Shared memory has 8 reads of 4 cycles to do from 25 on, of 4 schedulers' two warps each;
    # the second four begin at 41, the last of them at 53. FFMA at 53 + 33 = 86, STS at 90, MUFU at 91 and 92, from 91 (the
    # first warp's second one keeps the unit until then) and from 99 on; FADD at 111 and 119, ISETP at 123, BRA at 136.
    walk = schedule.Walk(paths.Loop(made(*STEP, threads=256)), pairs=False)
    assert walk.predict().cycles == 141
    # Where two lanes read the same 16 bytes, a read takes 2 cycles. First warp: 25 + 6 + 33 = 64, MUFU at 69 and 70, from 77
    # on; second: from 33 + 6 on, 72, STS at 76, MUFU at 77 and 78, from 85 and from 93 on, FADD at 113, 117, 130, 135.
    walk = schedule.Walk(paths.Loop(made(*STEP, threads=256)), pairs=True)
    assert walk.predict().cycles == 135


ASYNC = (
    ("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R0]", 2, 0, 7, 0), ("@!P0 BRA 0x70", 5, 7, 7, 1),
    ("LDS.128 R4, [R0]", 4, 1, 7, 0), ("FFMA R8, R4, R20, R8", 4, 7, 7, 2),
    ("STAS.128 [R2.64], R4", 1, 7, 7, 0), ("@P0 BRA 0x0", 5, 7, 7, 0), ("EXIT", 5, 7, 7, 0),
    ("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R0]", 2, 0, 7, 0), ("@!P0 BRA 0x70", 5, 7, 7, 1), ("BRA 0x20", 5, 7, 7, 0))


def test_a_walk_through_an_exchange():
    """State there, 20 until the wait is over, 5 for its branch, 33 to the multiply-add, 4 to the store: 62; back at the wait
    1 + 5 later, which the flight of 200 hides."""
    found = schedule.Walk(paths.Loop(made(*ASYNC))).predict()
    assert (found.exchange, found.serial, found.flight, found.shadow, found.cycles) == ("async", 62, 200, 6, 262)
    # With 300 cycles between the store and the wait, the flight is hidden.
    late = ASYNC[:5] + tuple(plain("MOV R0, R1", 15) for _ in range(20))
    late += (("@P0 BRA 0x0", 5, 7, 7, 0), ("EXIT", 5, 7, 7, 0))
    late = late[:1] + (("@!P0 BRA 0x1b0", 5, 7, 7, 1),) + late[2:] + ASYNC[7:8] + (
        ("@!P0 BRA 0x1b0", 5, 7, 7, 1), ("BRA 0x20", 5, 7, 7, 0))
    found = schedule.Walk(paths.Loop(made(*late))).predict()
    assert (found.serial, found.shadow, found.cycles) == (62, 306, 368)


def test_a_state_is_there_when_all_warps_have_sent():
    """Two warps on each scheduler, lanes in pairs. The second one's branch is a cycle later, at 21, its read at 26; that
    finds shared memory busy with 4 reads of 2 cycles from 25 to 33, and is the last of the next 4, from 39 on: 39 + 33 + 4.
    """
    found = schedule.Walk(paths.Loop(made(*ASYNC, threads=256))).predict()
    assert (found.serial, found.cycles) == (76, 276)
    # 8 special functions, a sum and a block barrier before the sending. The first warp begins those at 68 and has the sum at
    # 68 + 7 * 8 + 20 = 144; the second one's follow it in the same unit, so it has its sum at 208 and comes at 212. At 237
    # both may go on: one sends and issues its branch, then the other sends.
    more = 8 * (("MUFU.EX2 R9, R8", 1, 2, 7, 0),) + (("FADD R9, R9, R9", 4, 7, 7, 4), plain("BAR.SYNC 0x0", 6))
    lines = list(ASYNC[:4] + more + ASYNC[4:])
    lines[1] = lines[18] = "@!P0 BRA 0x110", 5, 7, 7, 1
    assert schedule.Walk(paths.Loop(made(*lines, threads=256))).predict().serial == 239


def test_a_step_is_no_shorter_than_its_busiest_pipe():
    """8 warps on a scheduler, 40 special functions of 8 cycles each: more than any latency."""
    functions = ASYNC[:4] + tuple(plain("MUFU.EX2 R9, R8") for _ in range(40))
    lines = functions + (ASYNC[4], ("@P0 BRA 0x0", 5, 7, 7, 0), ("EXIT", 5, 7, 7, 0))
    lines = (lines[0], ("@!P0 BRA 0x2f0", 5, 7, 7, 1)) + lines[2:] + (
        ASYNC[7], ("@!P0 BRA 0x2f0", 5, 7, 7, 1), ASYNC[9])
    found = schedule.Walk(paths.Loop(made(*lines, threads=1024))).predict()
    assert found.busy == 8 * 40 * 8 <= found.cycles < found.busy + 300
    two = schedule.Walk(paths.Loop(made(*lines, threads=1024)), blocks=2).predict()
    assert 2 * two.busy <= two.cycles


def test_weights_in_shared_memory_are_no_pairs():
    """Of 32 threads, they are 512 bytes apart; a state's are not. The reads of one warp take 2 + 2 + 4 + 4 cycles."""
    loop = paths.Loop(made(
        plain("BAR.SYNC 0x0"), plain("LDS.128 R4, [R0]"), plain("LDS.128 R8, [R0+0x80]"), plain("LDS.128 R12, [R2+0x1000]"),
        ("LDS.128 R16, [R2+0x1200]", 1, 0, 7, 0), ("FFMA R8, R4, R20, R8", 4, 7, 7, 1), plain("@P0 BRA 0x0"), plain("EXIT")))
    assert schedule.Walk(loop).predict().shared == 12 and schedule.Walk(loop, pairs=False).predict().shared == 16


def test_a_memory_barrier_is_paid_for():
    fence = STEP[:4] + (("MEMBAR.ALL.GPU", 6, 7, 7, 0),) + STEP[4:]
    assert schedule.Walk(paths.Loop(made(*fence)), pairs=False).predict().cycles == 113 + schedule.MEMBAR


def test_paths_that_do_not_fit_together():
    """The other warp would not come to the second barrier: it is taken to go the same way."""
    lines = list(STEP[:4]) + [plain("@P1 BRA 0x60"), plain("BAR.SYNC 0x0")] + list(STEP[8:])
    walk = schedule.Walk(paths.Loop(made(*lines, threads=256)), finishing=4)
    assert walk.short_path == walk.long_path
    assert walk.predict().cycles > 0


# ---- gates

def test_a_good_kernel_passes():
    assert gates() == [] and gates("ASYNC") == []


def test_a_division_is_found():
    found = gates("DIVIDE")
    assert len(found) == 2 and "CALL" in found[0] and "FCHK" in found[1] and found[0].startswith("small: got 1 ")


@pytest.mark.slow
def test_a_spill_is_found():
    found = gates(threads=1024)  # leaves 64 registers for 64 weights and all the rest
    assert any("LDL" in sentence for sentence in found)


@pytest.mark.slow
def test_a_memory_barrier_in_an_async_kernel_is_found():
    assert ["MEMBAR" in sentence for sentence in gates("ASYNC", "FENCE")] == [True]
    assert gates("FENCE") == []  # where blocks do not exchange by st.async it may be needed


@pytest.mark.slow
def test_narrow_reads_of_the_state_are_found():
    found, = gates("NARROW")
    assert re.match(r"small: got (\d+) reads of the state narrower than 16 bytes, needs none", found)


@pytest.mark.slow
def test_too_many_instructions_are_found():
    path = machine_code.report(small()).path
    besides = sum(path.values()) - path["FFMA"]
    assert gates(most_besides_ffma=besides) == []
    found, = gates(most_besides_ffma=besides - 1)
    assert f"got {besides} instructions a step that are no multiply-add, needs at most {besides - 1}" in found


# ---- our kernels

def variant_of(family, exchange):
    """The Variant of a family with one row at a time for 256 hidden units, of a cluster of 4."""
    return next(variants.Variant(family, tile, blocks or 256 // tile.columns, exchange=exchange)
                for tile, blocks in variants.tiles(family, 90)
                if tile.k == 256 and tile.rows == 1 and (family != "cluster" or blocks == 4))


@pytest.mark.parametrize("direction", ["Forward", "Backward"])
@pytest.mark.parametrize("family, exchange, expected", [
    ("resident", "async", "block barrier"), ("cluster", "async", "async"), ("cluster", "barrier", "cluster barrier"),
    ("grid", "async", "grid")])
@pytest.mark.slow
def test_our_kernels(family, exchange, expected, direction):
    variant = variant_of(family, exchange)
    tile = variant.tile
    cubin = compiler.compiled(variant.kernel(direction), 90).cubin
    one, two = machine_code.reports([cubin] * 2, [machine_code.arguments_of(tile, tiles) for tiles in (1, 2)])
    assert one.gates == [] and one.exchange == expected
    # All of the product is on the path: each thread has 1 in `threads` of K·COLUMNS multiply-adds.
    product = tile.k * tile.columns // tile.threads
    assert product <= one.path["FFMA"] < product + 32 and product <= one.idle["FFMA"]
    assert 2 * product <= two.path["FFMA"] < 2 * (product + 32)
    now, then = one.prediction, two.prediction
    assert now.cycles == now.serial + max(now.flight, now.shadow)
    assert now.alone <= now.serial and now.busy < now.cycles
    assert now.cycles < then.cycles <= 2 * now.cycles and then.cycles >= 2 * then.busy


@pytest.mark.slow
def test_the_barrier_is_slower_than_st_async():
    cubins = [compiler.compiled(variant_of("cluster", exchange).kernel("Forward"), 90).cubin
              for exchange in variants.EXCHANGES]
    new, old = (machine_code.report(cubin).prediction.cycles for cubin in cubins)
    assert old > new + schedule.MEMBAR


# Instructions a step and tile of rows that are neither a multiply-add nor a read of the state or of weights, at most, by rows: a
# few more than there are now.
MOST_OTHERS = {"resident": {1: 120, 2: 175, 4: 270}, "cluster": {1: 145, 2: 170, 4: 210}, "grid": {1: 225, 4: 340}}


@pytest.mark.slow
def test_every_kernel_passes_the_gates():
    tiles = predict.kernels()
    cubins = []
    for path in compiler.compile_all(tiles, 90).values():
        with open(path, "rb") as file:
            cubins.append(file.read())
    wrong, chosen = [], {tile for family in MOST_OTHERS for tile, _ in variants.tiles(family, 90)}
    for (kernel, tile), (function,) in zip(tiles.items(), sass.disassemble(cubins)):
        if tile in chosen:  # others are for architectures that are not looked at here
            reads = tile.chunks * tile.rows + 4 * tile.in_shared
            wrong += paths.Loop(function).gates(reads + MOST_OTHERS[kernel.family][tile.rows])
        if function.registers != variants.predictions()[str(kernel)].registers:
            wrong.append(f"{kernel}: {function.registers} registers; run python -m benchmarks.machine_code.predict")
    assert len(cubins) == len(tiles) > 200 and not wrong, "\n".join(wrong)


# ---- what the choice goes by

def test_every_kernel_that_can_be_chosen_is_predicted():
    """Whoever changes the tiles runs ``python -m benchmarks.machine_code.predict`` again."""
    assert set(variants.predictions()) == set(map(str, predict.kernels()))
    for architecture in variants.ARCHITECTURES:  # those of the others are among them
        for family in variants.FAMILIES[:-1]:
            assert {variants.Variant(family, tile, blocks or 1).kernel("Forward") for tile, blocks in variants.tiles(
                family, architecture)} <= set(predict.kernels())


@pytest.mark.slow
def test_predictions():
    kernels = {variant.kernel("Forward"): variant.tile
               for variant in (variant_of("resident", "async"), variant_of("cluster", "async"))}
    compiled = {kernel: compiler.compiled(kernel, 90) for kernel in kernels}
    found = predict.predictions({(kernel, tile): compiled[kernel].cubin for kernel, tile in kernels.items()})
    assert list(found) == [str(kernel) for kernel in kernels]
    for kernel, one in zip(kernels, found.values()):
        assert one.registers == compiler.resources(compiled[kernel].log, kernel.name).registers
        cubin, tile = compiled[kernel].cubin, kernels[kernel]
        reports = [machine_code.report(cubin, **machine_code.arguments_of(tile, tiles)).prediction for tiles in (1, 2, 3)]
        assert one[:2] == (round(reports[0].cycles), round(reports[1].cycles)) and one.busy == round(reports[0].busy)
        assert one.two + one.tile == pytest.approx(reports[2].cycles, rel=0.01)  # each further tile adds the same


# ---- the command

def test_the_command(capsys, tmp_path):
    path = tmp_path / "small.cubin"
    path.write_bytes(small("ASYNC"))
    assert command.main(["--cubin", str(path), "--listing"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^ +\d+ .* send .*STAS\.128", text, re.M) and "branches: " in text
    path.write_bytes(small("DIVIDE"))
    assert command.main(["--cubin", str(path)]) == 1
    assert "got 1 CALL in the loop over the steps" in capsys.readouterr().out


@pytest.mark.parametrize("module", [command, predict], ids=["report", "predict"])
@pytest.mark.parametrize("missing", ["nvdisasm", "NVRTC"])
def test_a_command_without_its_tools_is_one_line(module, missing, monkeypatch, capsys):
    def lacking(*_):
        raise RuntimeError(f"{missing}: not found")

    monkeypatch.setattr(compiler, "compile_all", None)
    monkeypatch.setattr(sass if missing == "nvdisasm" else compiler, "nvdisasm" if missing == "nvdisasm" else "find", lacking)
    with pytest.raises(SystemExit) as ended:
        module.main([])
    printed, said = capsys.readouterr()
    assert (ended.value.code, printed) == (2, "") and len(said.splitlines()) == 1
    assert f"error: {missing}: not found (rnn_ops[test] brings both NVRTC and nvdisasm)" in said


def test_a_command_that_is_called_wrongly_does_nothing(monkeypatch, capsys):
    monkeypatch.setattr(compiler, "compile_all", None)
    for module in command, predict:
        for arguments, status in ((["--help"], 0), (["--no-such-option"], 2)):
            with pytest.raises(SystemExit) as ended:
                module.main(arguments)
            assert ended.value.code == status
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_the_command_compiles_a_family(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RNN_OPS_CACHE", str(tmp_path))
    assert command.main(["--shape", "1,128", "--only", "forward<Forward<float>, Tile<128, 32"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "kernel" and rows
    assert all(row.startswith("rnn_cluster_forward<Forward<float>, Tile<128, 32") for row in rows)
