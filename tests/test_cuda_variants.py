"""The choice of a CUDA kernel: there always is one, and it is the cheapest that can be launched."""
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from rnn_ops.backends.cuda import variants

DEVICES = st.builds(variants.known_device, st.sampled_from(variants.ARCHITECTURES), st.integers(1, 200))
# Mostly batches as in training, sometimes so many rows that a launch runs out of blocks.
ROWS = st.integers(1, 4096) | st.integers(1, 1 << 26)
HIDDEN = st.integers(1, 4096)
COMPILED = {(family, architecture): set(variants.tiles(family, architecture))
            for family in variants.FAMILIES for architecture in variants.ARCHITECTURES}

V100, T4, A100, RTX3090, L4, H100 = (variants.known_device(*limits) for limits in (
    (70, 80), (75, 40), (80, 108), (86, 82), (89, 58), (90, 132)))


def check_launchable(variant, device, B, H):
    """What the hardware and the kernels ask of a launch, each from its own source and none from the chooser's code."""
    tile, blocks, groups, rows = variant.tile, variant.blocks, variant.groups, variant.rows
    assert tile.k >= H and tile.columns * blocks >= H
    assert tile.columns * (blocks - 1) < H or variant.family == "cluster"  # only a cluster fills up
    assert 32 <= tile.threads <= 1024 and tile.threads % 32 == 0
    assert tile.k_lanes in (4, 8, 16, 32)
    assert tile.k % (4 * tile.k_lanes * tile.k_warps) == 0 and tile.columns % (4 * (32 // tile.k_lanes)) == 0
    assert tile.threads == 32 * tile.k_warps * (tile.columns // (4 * (32 // tile.k_lanes)))
    assert 0 <= tile.in_shared < tile.chunks
    assert rows % tile.rows == 0 and (groups - 1) * rows < B <= groups * rows
    assert groups <= 65535, "the grid's y"
    assert variant.shared <= device.shared_memory
    # The shared memory that the kernel divides up: weights, states (grid: of two tiles), partial sums of several warps along k,
    # two mbarriers of 8 bytes a tile of rows.
    states = 2 * tile.k * (tile.rows if variant.family == "grid" else rows)
    weights = tile.in_shared * 4 * tile.k_lanes * tile.k_warps * tile.columns
    partials = tile.k_warps * tile.rows * tile.columns if tile.k_warps > 1 else 0
    mbarriers = 16 * (rows // tile.rows) if variant.family == "cluster" else 0
    assert variant.shared == 4 * (weights + states + partials) + mbarriers
    if variant.family != "grid":
        assert tile.k_warps == 1, "a warp has all of k"
    if variant.family == "cluster":
        assert 4 * tile.rows <= tile.k_lanes, "a lane finishes one element"
    if variant.family == "resident":
        assert blocks == 1 and tile.columns == tile.k
    elif variant.family == "cluster":
        assert device.compute_capability >= 90
        assert blocks in (2, 4, 8, 16) and tile.columns * blocks == tile.k
    else:  # all blocks of a cooperative launch run at once
        assert blocks * groups <= device.multiprocessors
    assert (tile, None if variant.family == "grid" else blocks) in COMPILED[variant.family, device.architecture]


@given(DEVICES, st.sampled_from(("float32", "float64")), ROWS, HIDDEN)
@example(V100, "float32", 1 << 26, 256)  # 65,535 blocks are not enough
def test_every_candidate_can_be_launched(device, dtype, B, H):
    found, reasons = variants.candidates(device, dtype, B, H)
    for variant in found:
        if variant.family != "stepwise":
            check_launchable(variant, device, B, H)
    families = {variant.family for variant in found}
    assert families | set(reasons) == set(variants.FAMILIES) and not families & set(reasons)
    assert "stepwise" in families
    if dtype == "float64":
        assert families == {"stepwise"} and all("float64" in reason for reason in reasons.values())


@given(DEVICES, st.sampled_from((np.float32, np.float64)), ROWS, HIDDEN)
def test_the_choice_is_the_cheapest_candidate(device, dtype, B, H):
    found, _ = variants.candidates(device, dtype, B, H)
    chosen = variants.choose(device, dtype, B, H)
    assert chosen in found
    assert 0 < variants.total_cycles(chosen) == min(map(variants.total_cycles, found)) < float("inf")
    assert chosen == variants.choose(device, dtype, B, H)


@given(DEVICES, st.sampled_from(("float32", "float64")), ROWS, HIDDEN, st.sampled_from(variants.FAMILIES))
def test_a_forced_family_serves_or_says_why_not(device, dtype, B, H, family):
    found, reasons = variants.candidates(device, dtype, B, H)
    if family in reasons:
        with pytest.raises(ValueError) as error:
            variants.choose(device, dtype, B, H, family)
        message = str(error.value)
        assert message.startswith(f"family: got '{family}'") and reasons[family] in message
        assert all(str(value) in message for value in (dtype, B, H, device.name))
    else:
        chosen = variants.choose(device, dtype, B, H, family)
        assert chosen.family == family
        cycles = [variants.total_cycles(variant) for variant in found if variant.family == family]
        assert variants.total_cycles(chosen) == min(cycles)


@given(DEVICES, st.integers(1, 4096), HIDDEN, st.integers(1, 8))
def test_more_rows_never_cost_fewer_cycles(device, B, H, more):
    few, many = (variants.total_cycles(variants.choose(device, "float32", rows, H)) for rows in (B, B + more))
    assert many >= few


@pytest.mark.parametrize("turns", [1, 2, 10])
def test_blocks_that_wait_for_a_multiprocessor_cost_its_time_again(turns):
    """8 rows are all that the shared memory of a V100 has room for at H = 256."""
    device = variants.known_device(70, 1)
    once, all_turns = (variants.choose(device, "float32", B, 256, "resident") for B in (8, 8 * turns))
    assert (all_turns.rows, all_turns.groups) == (8, turns) and all_turns.cycles == turns * once.cycles


@pytest.mark.parametrize("device, B, H, family", [
    (H100, 32, 64, "resident"), (H100, 32, 256, "cluster"), (H100, 1, 256, "cluster"), (H100, 1, 1024, "cluster"),
    (H100, 32, 2048, "grid"), (H100, 1, 2048, "grid"), (H100, 32, 2049, "stepwise"),
    (A100, 32, 2048, "stepwise"),  # of its 16 MB, the tile of one row alone has room
    (A100, 32, 64, "resident"), (A100, 32, 256, "resident"), (A100, 32, 1024, "grid"), (A100, 1, 2048, "grid"),
    (V100, 32, 256, "resident"), (V100, 32, 1024, "grid"), (V100, 32, 2048, "stepwise"),  # 80 blocks cannot hold 16 MB
    (RTX3090, 32, 256, "resident"), (RTX3090, 32, 1024, "grid"), (L4, 32, 256, "resident"), (L4, 32, 1024, "grid"),
    (T4, 32, 64, "resident"), (T4, 32, 256, "grid"),  # 64 KB of shared memory are too few for a resident 256
])
def test_the_variants_of_known_gpus(device, B, H, family):
    assert variants.choose(device, "float32", B, H).family == family


def test_the_tutorial_on_a_hopper_has_a_cluster_for_each_row():
    chosen = variants.choose(H100, "float32", 32, 256)
    assert (chosen.blocks, chosen.groups, chosen.rows) == (4, 32, 1)  # 128 of 132 multiprocessors
    assert chosen.tile.in_shared == 0


@pytest.mark.parametrize("device, dtype, H, family, reason", [
    (A100, "float32", 128, "cluster", "compute capability 80: clusters need 90 or more"),
    (H100, "float32", 257, "resident", "257 hidden units: at most 256"),
    (H100, "float32", 1025, "cluster", "1025 hidden units: at most 1024"),
    (H100, "float32", 2049, "grid", "2049 hidden units: at most 2048"),
    (H100, "float64", 8, "grid", "float64: only float32 fits on the chip"),
    (T4, "float32", 256, "resident", "no tile for 256 hidden units fits 64 KiB of shared memory a block"),
    (variants.known_device(86, 2), "float32", 512, "grid", "99 KiB of shared memory a block and 2 multiprocessors"),
    (variants.Device("old", 61, 48 << 10, 20), "float32", 8, "resident", "compute capability 61: needs 70 or more"),
])
def test_the_reason_against_a_family(device, dtype, H, family, reason):
    with pytest.raises(ValueError, match=reason):
        variants.choose(device, dtype, 4, H, family)


def test_the_error_for_an_unknown_family_lists_the_families():
    with pytest.raises(ValueError, match="family: got 'warp', needs one of resident, cluster, grid, stepwise"):
        variants.choose(H100, "float32", 4, 8, "warp")


@given(st.integers(10, 69), st.integers(1, 200), ROWS, HIDDEN)
def test_a_gpu_older_than_the_kernels_gets_stepwise(compute_capability, multiprocessors, B, H):
    device = variants.Device("old", compute_capability, 48 << 10, multiprocessors)
    assert device.architecture is None
    found, reasons = variants.candidates(device, "float32", B, H)
    assert [variant.family for variant in found] == ["stepwise"] and len(reasons) == 3


# A chip between or after those that are known counts as the newest one before it, with its own shared memory: compute
# capability 12.0 may have clusters of 16, as 9.0, but 99 KiB.
@given(st.integers(70, 130), st.integers(48, 256), st.integers(1, 200), ROWS, HIDDEN)
@example(120, 99, 188, 32, 256)
@example(87, 163, 16, 32, 256)
def test_an_unknown_gpu_has_its_own_limits(compute_capability, kibibytes, multiprocessors, B, H):
    device = variants.Device("unknown", compute_capability, kibibytes << 10, multiprocessors)
    assert device.architecture == max(known for known in variants.ARCHITECTURES if known <= compute_capability)
    for variant in variants.candidates(device, "float32", B, H)[0]:
        if variant.family != "stepwise":
            check_launchable(variant, device, B, H)


@given(st.sampled_from(variants.FAMILIES), st.sampled_from(variants.ARCHITECTURES), st.data())
def test_every_tile_that_is_compiled_can_be_chosen(family, architecture, data):
    """`tiles` lists nothing that no shape needs, as far as there is room for it on the largest chip of its kind."""
    assume(COMPILED[family, architecture])
    tile, blocks = data.draw(st.sampled_from(sorted(COMPILED[family, architecture], key=str)))
    device = variants.known_device(architecture, 200)
    taken = {(variant.family, variant.tile) for variant in variants.candidates(device, "float32", 200, tile.k)[0]}
    smallest = variants.Variant(family, tile, blocks or 1, 1, tile.rows)
    assert (family, tile) in taken or smallest.shared > device.shared_memory
