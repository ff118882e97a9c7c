"""Attend for Hopper, in Gluon: the kernel of attend.py with every warp given its part.

One warp fetches tiles of keys and values with the bulk copy engine, as far ahead as the rings in
shared memory allow. Each group of four warps attends 64 rows of the q-block and waits for nobody
but the fetcher, so that one group's exponentials run beside the other's products. Within a group,
the scores of tile i + 1 are on the tensor cores while the weighted values of tile i are:

    scores(i + 1) = q k(i + 1)^T      acc += weights(i) v(i)      weights(i + 1) = exp2(...)

Rows that are bounded, as nearly all are, need no moving maximum. The online softmax follows the
maximum of a row only to keep exp2 in range. Where a row is bounded before its loop starts, the
maximum of its first tile serves for all tiles: neither maxima nor rescaling, and the same softmax.
With m any fixed vector and r = max |k - m|, Cauchy and Schwarz give

    q k <= q m + |q| r

Formulas and notes of attend.py are not repeated here. From top to bottom: records, the kernel, its
two roles, their loops, the softmax.
"""

from typing import TYPE_CHECKING, Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

# Gluon's own modules take it from here, too.
from triton.language.core import _aggregate, base_value

from ..rspa_core.rectification import SMALLEST_SHARE

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform

    Value = Any
else:
    # What a mode does not have is None, and a stride may be known as 1: both are constants.
    Value = gl.tensor | gl.constexpr

    def dataclass_transform(**_):
        return lambda function: function


# The barrier of the four warps of a group; its name has changed between releases.
group_barrier = getattr(gl, "thread_barrier", None) or gl.barrier
# So has that of the bulk copy.
copy_to_shared = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared

# Rows of one group: what four warps multiply at once.
GROUP_ROWS = gl.constexpr(64)
LOG2E = gl.constexpr(1.4426950408889634)
# The bits of 1.5 * 2^23: an integer below 2^22 added to them gives the bits of a float that is as
# much larger. A sum of int8 products that starts here is a float without any conversion.
INTEGER_BITS = gl.constexpr(0x4B400000)
INTEGER_FLOAT = gl.constexpr(12582912.0)
LEAST = gl.constexpr(SMALLEST_SHARE)
# log2 of the largest weight of a bounded row. bf16 has the exponents of fp32, and leaves room for
# the sum of 2^17 such weights times values up to 2^20; fp16 ends at 2^16.
RANGE = gl.constexpr(90.0)
RANGE_FP16 = gl.constexpr(15.0)


@dataclass_transform(kw_only_default=True)
def record(cls: Any) -> Any:
    """Class decorator: a record for kernels with the annotated fields, all given by name."""
    names = tuple(cls.__annotations__)

    @gluon.constexpr_function
    def __init__(self, **values):
        for name in names:
            given = values[name]
            setattr(self, name, given if isinstance(given, base_value) else gl.constexpr(given))

    cls.__init__ = __init__
    return _aggregate(cls)


@record
class Shape:
    """Constants of the kernel."""

    D: gl.constexpr
    DP: gl.constexpr
    Q_BLOCK: gl.constexpr
    KV_BLOCK: gl.constexpr
    TILE_N: gl.constexpr
    INT8: gl.constexpr
    PAPER: gl.constexpr
    PRECISE: gl.constexpr
    SCALE_GROUPS: gl.constexpr


@record
class Ring:
    """Tiles in shared memory: the fetching warp fills them, the groups empty them.

    A ring has `STAGES` slots; tile `index` goes into slot `index % STAGES`. Two barriers guard each
    slot: `full` completes when the copy has arrived, `empty` when every group has left the slot.
    """

    tiles: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor
    STAGES: gl.constexpr

    @gluon.jit
    def fetch(self, tensor, row, index):
        """Copy rows `row ...` into the slot of tile `index`, as soon as all groups have left it."""
        slot = index % self.STAGES
        full = self.full.index(slot)
        mbarrier.wait(self.empty.index(slot), ((index // self.STAGES) & 1) ^ 1)
        mbarrier.expect(full, tensor.block_type.nbytes)
        copy_to_shared(tensor, [row, 0], full, self.tiles.index(slot))

    @gluon.jit
    def wait(self, index):
        """Wait until tile `index` is there; returns its slot."""
        slot = index % self.STAGES
        mbarrier.wait(self.full.index(slot), (index // self.STAGES) & 1)
        return slot

    @gluon.jit
    def leave(self, slot):
        """This group has read what it needs from the slot."""
        mbarrier.arrive(self.empty.index(slot), count=1)


@record
class Queries:
    """Rows of one program: where they come from and where they go."""

    q: Value  # of the head; of INT8 of the block, in token order
    scale: Value  # fp32: what one step of each int8 row of the block is worth, INT8
    source: Value  # int32: token of each row of the block, -1 for padding
    out: Value  # of the head
    lse: Value  # of the head, or None
    tiles: gl.shared_memory_descriptor  # [GROUPS, GROUP_ROWS, DP], as products read them
    num_heads: Value
    stride_n: Value
    stride_d: Value


@record
class Keys:
    """What is known of the keys of a head besides their packed tiles."""

    scale: Value  # fp32: what one step of each int8 block is worth, INT8
    centre: Value  # [D] fp32
    radius: Value  # fp32: of the key farthest from there


@record
class Work:
    """What one program attends: full blocks by a list, two ragged ones, the tail."""

    head_row: Value  # first packed row of the head
    entries: Value  # numbers of the full blocks
    num_tiles: Value  # that these take
    ragged_block: Value  # the last one of the video
    ragged_size: Value  # its tokens, 0 if it is not attended
    context_block: Value  # the last one of the context
    context_size: Value
    tail_row: Value  # first row of the head in the tail
    num_tail: Value  # tiles of the tail


@record
class Tail:
    """What is known of the groups of keys behind the tail, "precise"."""

    bias: Value  # [tail_length] fp32 of the q-block, added to logits
    weight: Value  # fp32, added to all logits of the head
    key_scale: Value  # [tail_length / SCALE_GROUPS] fp32: what one step of int8 keys is worth, INT8


@record
class Compensation:
    """What "paper" makes of a q-block's rows."""

    scale: Value  # fp32, R
    addition: Value  # [DP]
    is_video: Value  # rows of the context have neither


@gluon.jit(
    do_not_specialize=[
        "first_head", "num_heads", "length", "packed_length", "tail_length", "num_q",
        "num_context_q", "num_k", "video_length", "context_length", "width", "all_blocks_start",
        "num_all_blocks",
    ]
)  # fmt: skip
def attend_hopper_kernel(
    q, q_scale, q_source, packed_k, packed_v, k_scale, kv_indices, list_lengths, ragged_kept,
    rectify_scale, compensation, tail_k, tail_v, tail_k_scale, tail_bias, tail_weight, out, lse,
    first_head, num_heads, length, packed_length, tail_length, num_q, num_context_q, num_k,
    video_length, context_length, width, all_blocks_start, num_all_blocks,
    stride_b, stride_h, stride_n, stride_d, scale, k_centre, k_radius,
    D: gl.constexpr, DP: gl.constexpr, Q_BLOCK: gl.constexpr, KV_BLOCK: gl.constexpr,
    TILE_N: gl.constexpr, STAGES: gl.constexpr, INT8: gl.constexpr, RECTIFICATION: gl.constexpr,
    TAIL_KEYS: gl.constexpr, SCALE_GROUPS: gl.constexpr,
):  # fmt: skip
    """Arguments of attend.py, but keys and values are always descriptors of TILE_N rows.

    Besides them k_centre `[B * H, D]` and k_radius `[HC]`, both fp32: a vector, which int8 keys
    have lost, and the length of the longest key from there.
    """
    GROUPS: gl.constexpr = Q_BLOCK // GROUP_ROWS
    PAPER: gl.constexpr = RECTIFICATION == "paper"
    PRECISE: gl.constexpr = RECTIFICATION == "precise"
    block = gl.program_id(0)
    q_block = block - num_context_q
    is_video = q_block >= 0
    head = gl.program_id(1).to(gl.int64)
    batch = (first_head + head) // num_heads
    head_in_batch = (first_head + head) % num_heads
    row = head * num_q + gl.maximum(q_block, 0)

    num_entries = gl.where(is_video, gl.load(list_lengths + row), num_all_blocks)
    kept = (is_video == 0) | (gl.load(ragged_kept + row) > 0)
    context_size = context_length % KV_BLOCK
    num_keys = num_k * TAIL_KEYS
    work = Work(
        head_row=(head * packed_length).to(gl.int32),
        entries=kv_indices + gl.where(is_video, row * width, all_blocks_start),
        num_tiles=num_entries * (KV_BLOCK // TILE_N),
        ragged_block=num_k - 1,
        ragged_size=gl.where(kept, video_length % KV_BLOCK, 0),
        context_block=gl.where(context_size > 0, num_k + context_length // KV_BLOCK, 0),
        context_size=context_size,
        tail_row=(head * tail_length).to(gl.int32),
        num_tail=gl.where(is_video, (num_keys + TILE_N - 1) // TILE_N, 0),
    )

    K_DTYPE: gl.constexpr = packed_k.dtype
    K_TILE: gl.constexpr = gl.NVMMASharedLayout.get_default_for([GROUP_ROWS, DP], K_DTYPE)
    q_tiles = gl.allocate_shared_memory(K_DTYPE, [GROUPS, GROUP_ROWS, DP], K_TILE)
    first_q = q + batch * stride_b + head_in_batch * stride_h
    row_scale = None
    if INT8:
        packed_rows = (head * (num_context_q + num_q) + block) * Q_BLOCK
        first_q = q + packed_rows * DP
        row_scale = q_scale + packed_rows
    logs = None
    if lse is not None:
        logs = lse + (first_head + head) * length
    queries = Queries(
        q=first_q,
        scale=row_scale,
        source=q_source + block * Q_BLOCK,
        out=out + (batch * length * num_heads + head_in_batch) * D,
        lse=logs,
        tiles=q_tiles,
        num_heads=num_heads,
        stride_n=stride_n,
        stride_d=stride_d,
    )
    k_ring = _ring(packed_k, TILE_N, DP, STAGES, GROUPS)
    v_ring = _ring(packed_v, TILE_N, DP, STAGES, GROUPS)

    scales = None
    if INT8:
        scales = k_scale + head * (packed_length // KV_BLOCK)
    keys = Keys(
        scale=scales,
        centre=k_centre + (batch * num_heads + head_in_batch) * D,
        radius=k_radius + head,
    )
    factor = None
    addition = None
    if PAPER:
        factor = rectify_scale + row
        addition = compensation + row * DP
    paper = Compensation(scale=factor, addition=addition, is_video=is_video)
    bias = None
    weight = None
    tail_scale = None
    if PRECISE:
        bias = tail_bias + row * tail_length
        weight = gl.load(tail_weight + head)
        if INT8:
            tail_scale = tail_k_scale + head * (tail_length // SCALE_GROUPS)
    tail = Tail(bias=bias, weight=weight, key_scale=tail_scale)
    shape = Shape(
        D=D, DP=DP, Q_BLOCK=Q_BLOCK, KV_BLOCK=KV_BLOCK, TILE_N=TILE_N, INT8=INT8, PAPER=PAPER,
        PRECISE=PRECISE, SCALE_GROUPS=SCALE_GROUPS,
    )  # fmt: skip
    fetched = (packed_k, packed_v, tail_k, tail_v, work, k_ring, v_ring, shape)
    if GROUPS == 2:
        gl.warp_specialize(
            [
                (attend_rows, (0, queries, keys, work, tail, paper, k_ring, v_ring, scale, shape)),
                (attend_rows, (1, queries, keys, work, tail, paper, k_ring, v_ring, scale, shape)),
                (fetch_tiles, fetched),
            ],
            [4, 1],
            [240, 24],
        )
    else:
        gl.warp_specialize(
            [
                (attend_rows, (0, queries, keys, work, tail, paper, k_ring, v_ring, scale, shape)),
                (fetch_tiles, fetched),
            ],
            [1],
            [24],
        )


@gluon.jit
def _ring(
    tensor, TILE_N: gl.constexpr, DP: gl.constexpr, STAGES: gl.constexpr, GROUPS: gl.constexpr
):
    """An empty ring for tiles of a tensor descriptor that `GROUPS` groups read."""
    tiles = gl.allocate_shared_memory(tensor.dtype, [STAGES, TILE_N, DP], tensor.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=GROUPS)
    return Ring(tiles=tiles, full=full, empty=empty, STAGES=STAGES)


@gluon.jit
def fetch_tiles(packed_k, packed_v, tail_k, tail_v, work, k_ring, v_ring, shape):
    """Role of one warp: fetch full blocks, the two ragged ones, then the tail's groups of keys."""
    KV_BLOCK: gl.constexpr = shape.KV_BLOCK
    TILE_N: gl.constexpr = shape.TILE_N
    TILES: gl.constexpr = KV_BLOCK // TILE_N
    num_tiles = work.num_tiles
    ragged_row = work.head_row + work.ragged_block * KV_BLOCK
    ragged_tiles = (work.ragged_size + TILE_N - 1) // TILE_N
    context_row = work.head_row + work.context_block * KV_BLOCK
    num_attended = num_tiles + num_ragged_tiles(work, TILE_N)
    entry = gl.load(work.entries, mask=num_tiles > 0, other=0)
    for tile in range(0, num_attended):
        row = work.head_row + entry * KV_BLOCK + (tile % TILES) * TILE_N
        entry = gl.load(work.entries + (tile + 1) // TILES, mask=tile + 1 < num_tiles, other=0)
        behind = tile - num_tiles
        row = gl.where(behind >= 0, ragged_row + behind * TILE_N, row)
        behind -= ragged_tiles
        row = gl.where(behind >= 0, context_row + behind * TILE_N, row)
        k_ring.fetch(packed_k, row, tile)
        v_ring.fetch(packed_v, row, tile)
    if shape.PRECISE:
        for tile in range(0, work.num_tail):
            row = work.tail_row + tile * TILE_N
            k_ring.fetch(tail_k, row, num_attended + tile)
            v_ring.fetch(tail_v, row, num_attended + tile)


@gluon.jit
def attend_rows(group, queries, keys, work, tail, paper, k_ring, v_ring, scale, shape):
    """Role of four warps: rows `64 group ... 64 group + 63` of the q-block, from q to output."""
    D: gl.constexpr = shape.D
    DP: gl.constexpr = shape.DP
    TILE_N: gl.constexpr = shape.TILE_N
    TILES: gl.constexpr = shape.KV_BLOCK // TILE_N
    INT8: gl.constexpr = shape.INT8
    DTYPE: gl.constexpr = v_ring.tiles.dtype
    WIDE: gl.constexpr = v_ring.tiles.dtype == gl.bfloat16
    K_STEP: gl.constexpr = 32 if INT8 else 16  # channels of one instruction
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE_N, K_STEP])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DP, 16])
    W_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    Q_LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [32 // (DP // 8), DP // 8], [4, 1], [1, 0])
    ROW_S: gl.constexpr = gl.SliceLayout(1, S_LAYOUT)
    ROW_O: gl.constexpr = gl.SliceLayout(1, O_LAYOUT)

    source = queries.source + group * GROUP_ROWS
    q_rows = gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, Q_LAYOUT))
    q_cols = gl.arange(0, DP, gl.SliceLayout(0, Q_LAYOUT))
    unit = scale * LOG2E  # from raw scores to exponents of 2
    row_unit = unit
    radius = gl.load(keys.radius)
    if INT8:
        q_rows += group * GROUP_ROWS
        q_tile = gl.load(queries.q + q_rows[:, None] * DP + q_cols[None, :])
        exact = q_tile.to(gl.float32)
        step = gl.load(queries.scale + q_rows)
        # The keys have lost their centre; rounding lengthens a vector by less than a twentieth.
        bound = gl.sqrt(gl.sum(exact * exact, 1)) * step * radius * 1.1
        row_unit = gl.convert_layout(unit * step, ROW_S)
    else:
        token = gl.load(source + q_rows).to(gl.int64)
        q_offsets = token[:, None] * queries.stride_n
        q_offsets += q_cols.to(gl.int64)[None, :] * queries.stride_d
        inside = (token >= 0)[:, None] & (q_cols < D)[None, :]
        q_tile = gl.load(queries.q + q_offsets, mask=inside, other=0.0)
        exact = q_tile.to(gl.float32)
        centre = gl.load(keys.centre + q_cols, mask=q_cols < D, other=0.0)
        bound = gl.sqrt(gl.sum(exact * exact, 1)) * radius + gl.sum(exact * centre[None, :], 1)
    bound = gl.convert_layout(bound * unit, ROW_S)
    q_shared = queries.tiles.index(group)
    q_shared.store(q_tile)
    # Products read the queries of all four warps past the cache of each: every warp makes its own
    # visible before any warp goes on.
    fence_async_shared()
    group_barrier()

    acc = gl.zeros([GROUP_ROWS, DP], gl.float32, O_LAYOUT)
    highest = gl.full([GROUP_ROWS], float("-inf"), gl.float32, ROW_S)
    total = gl.full([GROUP_ROWS], 0.0, gl.float32, ROW_S)
    if INT8:
        start = gl.full([GROUP_ROWS, TILE_N], INTEGER_BITS, gl.int32, S_LAYOUT)
    else:
        start = gl.zeros([GROUP_ROWS, TILE_N], gl.float32, S_LAYOUT)

    num_tiles = work.num_tiles
    bounded = False
    if num_tiles > 0:
        scale_now = 1.0
        scale_next = 1.0
        entry = 0
        if INT8:
            # Two steps ahead: the scores must not wait for a chain of loads.
            entries = work.entries
            scale_now = gl.load(keys.scale + gl.load(entries))
            scale_next = gl.load(
                keys.scale + gl.load(entries + 1 // TILES, mask=num_tiles > 1, other=0)
            )
            entry = gl.load(entries + 2 // TILES, mask=num_tiles > 2, other=0)
        slot = k_ring.wait(0)
        k_tile = k_ring.tiles.index(slot).permute((1, 0))
        scores = warpgroup_mma(q_shared, k_tile, start, use_acc=INT8)
        k_ring.leave(slot)
        tile_unit = scaling(row_unit, scale_now, INT8)
        weights, highest, total, _ = online_step(scores, highest, total, tile_unit, INT8)
        w = gl.convert_layout(weights.to(DTYPE), W_LAYOUT)
        bounded = uniform(gl.max(bound - highest, 0) < (RANGE if WIDE else RANGE_FP16))
        if bounded:
            acc, w, highest, total = full_blocks(
                acc, w, highest, total, q_shared, start, row_unit, scale_next, entry,
                keys, work, k_ring, v_ring, shape, True,
            )  # fmt: skip
        else:
            acc, w, highest, total = full_blocks(
                acc, w, highest, total, q_shared, start, row_unit, scale_next, entry,
                keys, work, k_ring, v_ring, shape, False,
            )  # fmt: skip
        slot = v_ring.wait(num_tiles - 1)
        acc = warpgroup_mma(w, v_ring.tiles.index(slot), acc)
        v_ring.leave(slot)

    # The bound holds for means of keys, too, but for their bias: up to 2^13, too much for fp16.
    num_edges = 0
    if shape.PRECISE:
        num_edges = work.num_tail
        if WIDE:
            num_edges = gl.where(bounded, 0, num_edges)
    acc, highest, total = edge_tiles(
        acc, highest, total, q_shared, start, row_unit, num_edges,
        keys, work, tail, k_ring, v_ring, shape,
    )  # fmt: skip
    if shape.PRECISE and WIDE:
        if bounded:
            acc, total = tail_keys(
                acc, highest, total, q_shared, start, row_unit, work, tail, k_ring, v_ring, shape
            )

    if queries.lse is not None:
        logs = (highest + gl.log2(total)) / LOG2E
        if shape.PAPER:
            share = gl.load(paper.scale, mask=paper.is_video, other=1.0)
            logs -= gl.log(gl.maximum(share, LEAST))
        row = gl.load(source + gl.arange(0, GROUP_ROWS, ROW_S)).to(gl.int64)
        gl.store(queries.lse + row, logs, mask=row >= 0)
    result = acc / gl.convert_layout(total, ROW_O)[:, None]
    cols = gl.arange(0, DP, gl.SliceLayout(0, O_LAYOUT))
    if shape.PAPER:
        result *= gl.load(paper.scale, mask=paper.is_video, other=1.0)
        addition = gl.load(paper.addition + cols, mask=paper.is_video, other=0.0)
        result += addition.to(gl.float32)[None, :]
    token = gl.load(source + gl.arange(0, GROUP_ROWS, ROW_O)).to(gl.int64)
    stored = (token >= 0)[:, None] & (cols < D)[None, :]
    out_offsets = (token * queries.num_heads)[:, None] * D + cols[None, :]
    gl.store(queries.out + out_offsets, result.to(queries.out.dtype.element_ty), mask=stored)


@gluon.jit
def full_blocks(
    acc, w, highest, total, q_shared, start, row_unit, scale_next, entry,
    keys, work, k_ring, v_ring, shape, BOUNDED: gl.constexpr,
):  # fmt: skip
    """All tiles of full blocks but the first; the values of the last are left to be added.

    Args:
        acc, highest, total: of the online softmax after the first tile; BOUNDED rows keep the
            maximum they have.
        w: weights of the first tile, whose values are not yet added.
        q_shared: queries.
        start: where sums of products begin.
        row_unit: see `scaling`.
        scale_next, entry: scale of the keys of the second tile, block of the third, INT8.
        keys, work, k_ring, v_ring, shape: see there.

    Returns:
        acc, w, highest and total after the last tile.
    """
    INT8: gl.constexpr = shape.INT8
    TILES: gl.constexpr = shape.KV_BLOCK // shape.TILE_N
    S_LAYOUT: gl.constexpr = start.type.layout
    num_tiles = work.num_tiles
    parts = partial_sums(gl.zeros(start.shape, gl.float32, S_LAYOUT))
    for tile in range(1, num_tiles):
        unit = scaling(row_unit, scale_next, INT8)
        if INT8:
            scale_next = gl.load(keys.scale + entry)
            entry = gl.load(work.entries + (tile + 2) // TILES, mask=tile + 2 < num_tiles, other=0)
        k_slot = k_ring.wait(tile)
        k_tile = k_ring.tiles.index(k_slot).permute((1, 0))
        scores = warpgroup_mma(q_shared, k_tile, start, use_acc=INT8, is_async=True)
        v_slot = v_ring.wait(tile - 1)
        acc = warpgroup_mma(w, v_ring.tiles.index(v_slot), acc, is_async=True)
        scores = warpgroup_mma_wait(1, deps=(scores,))
        k_ring.leave(k_slot)
        if BOUNDED:
            weights = exponentials(scores, highest, unit, INT8)
            parts += partial_sums(weights)
        else:
            weights, highest, total, rescale = online_step(scores, highest, total, unit, INT8)
        next_w = gl.convert_layout(weights.to(w.dtype), w.type.layout)
        acc, w, next_w = warpgroup_mma_wait(0, deps=(acc, w, next_w))
        v_ring.leave(v_slot)
        if not BOUNDED:
            acc = acc * gl.convert_layout(rescale, gl.SliceLayout(1, acc.type.layout))[:, None]
        w = next_w
    if BOUNDED:
        total += gl.convert_layout(gl.sum(parts, 1), total.type.layout)
    return acc, w, highest, total


@gluon.jit
def edge_tiles(
    acc, highest, total, q_shared, start, row_unit, num_tail,
    keys, work, tail, k_ring, v_ring, shape,
):  # fmt: skip
    """The two ragged blocks, and the groups of keys of `precise` for rows that are not bounded.

    One loop for what is few or rare: each further one would have to be compiled, too.

    Args:
        acc, highest, total: of the online softmax.
        q_shared: queries.
        start: where sums of products begin.
        row_unit: see `scaling`.
        num_tail: tiles of the tail, behind those of the ragged blocks.
        keys, work, tail, k_ring, v_ring, shape: see there.

    Returns:
        acc, highest and total.
    """
    INT8: gl.constexpr = shape.INT8
    TILE_N: gl.constexpr = shape.TILE_N
    O_LAYOUT: gl.constexpr = acc.type.layout
    first = work.num_tiles
    num_tiles = num_ragged_tiles(work, TILE_N) + num_tail
    next_bias, scale_next = edge_bias(0, num_tiles, keys, work, tail, shape)
    for tile in range(0, num_tiles):
        bias = next_bias
        unit = scaling(row_unit, scale_next, INT8)
        weight = 0.0
        if shape.PRECISE:
            weight = gl.where(tile < num_tiles - num_tail, 0.0, tail.weight)
        k_slot = k_ring.wait(first + tile)
        k_tile = k_ring.tiles.index(k_slot).permute((1, 0))
        scores = warpgroup_mma(q_shared, k_tile, start, use_acc=INT8, is_async=True)
        next_bias, scale_next = edge_bias(tile + 1, num_tiles, keys, work, tail, shape)
        scores = warpgroup_mma_wait(0, deps=(scores,))
        k_ring.leave(k_slot)
        scores, zero = biased(scores, unit, bias, weight, highest, INT8)
        new_highest = gl.maximum(highest, gl.max(scores, 1) - zero)
        weights = gl.exp2(scores - (new_highest + zero)[:, None])
        rescale = gl.exp2(highest - new_highest)
        total = total * rescale + gl.sum(weights, 1)
        acc = acc * gl.convert_layout(rescale, gl.SliceLayout(1, O_LAYOUT))[:, None]
        highest = new_highest
        w = gl.convert_layout(weights.to(v_ring.tiles.dtype), gl.DotOperandLayout(0, O_LAYOUT, 2))
        v_slot = v_ring.wait(first + tile)
        acc = warpgroup_mma(w, v_ring.tiles.index(v_slot), acc)
        v_ring.leave(v_slot)
    return acc, highest, total


@gluon.jit
def edge_bias(tile, num_tiles, keys, work, tail, shape):
    """Bias and scale of a tile of `edge_tiles`, with -inf outside; of none beyond the last."""
    TILE_N: gl.constexpr = shape.TILE_N
    TILES: gl.constexpr = shape.SCALE_GROUPS // TILE_N
    column = tile_columns(TILE_N)
    num_ragged = (work.ragged_size + TILE_N - 1) // TILE_N
    in_context = tile - num_ragged
    in_tail = tile - num_ragged_tiles(work, TILE_N)
    size = gl.where(
        in_context < 0, work.ragged_size - tile * TILE_N, work.context_size - in_context * TILE_N
    )
    bias = gl.where((in_tail >= 0) | (column < size), 0.0, float("-inf"))
    is_tail = (in_tail >= 0) & (tile < num_tiles)
    if shape.PRECISE:
        bias += gl.load(tail.bias + in_tail * TILE_N + column, mask=is_tail, other=0.0)
    scale = 1.0
    if shape.INT8:
        block = gl.where(in_context < 0, work.ragged_block, work.context_block)
        address = keys.scale + block
        if shape.PRECISE:
            address = gl.where(is_tail, tail.key_scale + in_tail // TILES, address)
        scale = gl.load(address)
    return bias, scale


@gluon.jit
def tail_keys(acc, highest, total, q_shared, start, row_unit, work, tail, k_ring, v_ring, shape):
    """The groups of keys of `precise` for bounded rows, with the bias of attend.py.

    Args:
        acc, highest, total: of the softmax, whose maximum stays as it is.
        q_shared: queries.
        start: where sums of products begin.
        row_unit: see `scaling`.
        work, tail, k_ring, v_ring, shape: see there.

    Returns:
        acc and total.
    """
    INT8: gl.constexpr = shape.INT8
    TILE_N: gl.constexpr = shape.TILE_N
    TILES: gl.constexpr = shape.SCALE_GROUPS // TILE_N
    S_LAYOUT: gl.constexpr = start.type.layout
    W_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, acc.type.layout, 2)
    num_tiles = work.num_tail
    first = work.num_tiles + num_ragged_tiles(work, TILE_N)
    parts = partial_sums(gl.zeros(start.shape, gl.float32, S_LAYOUT))
    column = tile_columns(TILE_N)
    next_bias = gl.load(tail.bias + column)
    scale_next = 1.0
    if INT8:
        scale_next = gl.load(tail.key_scale)
    for tile in range(0, num_tiles):
        bias = next_bias
        unit = scaling(row_unit, scale_next, INT8)
        k_slot = k_ring.wait(first + tile)
        k_tile = k_ring.tiles.index(k_slot).permute((1, 0))
        scores = warpgroup_mma(q_shared, k_tile, start, use_acc=INT8, is_async=True)
        is_next = tile + 1 < num_tiles
        next_bias = gl.load(tail.bias + (tile + 1) * TILE_N + column, mask=is_next, other=0.0)
        if INT8:
            scale_next = gl.load(tail.key_scale + (tile + 1) // TILES, mask=is_next, other=1.0)
        scores = warpgroup_mma_wait(0, deps=(scores,))
        k_ring.leave(k_slot)
        scores, zero = biased(scores, unit, bias, tail.weight, highest, INT8)
        weights = gl.exp2(scores - (highest + zero)[:, None])
        parts += partial_sums(weights)
        w = gl.convert_layout(weights.to(v_ring.tiles.dtype), W_LAYOUT)
        v_slot = v_ring.wait(first + tile)
        acc = warpgroup_mma(w, v_ring.tiles.index(v_slot), acc)
        v_ring.leave(v_slot)
    return acc, total + gl.convert_layout(gl.sum(parts, 1), total.type.layout)


@gluon.jit
def tile_columns(TILE_N: gl.constexpr):
    """Columns of a tile, one per thread: in the layout of the scores each would load a quarter."""
    return gl.arange(0, TILE_N, gl.BlockedLayout([1], [32], [4], [0]))


@gluon.jit
def num_ragged_tiles(work, TILE_N: gl.constexpr):
    """Tiles of the two ragged blocks."""
    in_video = (work.ragged_size + TILE_N - 1) // TILE_N
    return in_video + (work.context_size + TILE_N - 1) // TILE_N


@gluon.jit
def biased(scores, unit, bias, weight, highest, INT8: gl.constexpr):
    """Raw scores in log2 with a bias by column, and what is to be taken off them for each row."""
    bias = gl.convert_layout(bias, gl.SliceLayout(0, scores.type.layout))[None, :]
    if INT8:
        scores = scores.to(gl.float32, bitcast=True) * unit[:, None] + bias
        zero = INTEGER_FLOAT * unit - weight
    else:
        scores = scores * unit + bias
        zero = gl.zeros_like(highest) - weight
    return scores, zero


@gluon.jit
def uniform(condition):
    """A condition that all threads share, as a value that the assembler knows they share.

    Behind a branch that threads might take differently it would keep addresses of products in
    registers of each thread, and copy every one of them.
    """
    bits = gl.inline_asm_elementwise(
        "redux.sync.or.b32 $0, $1, 0xffffffff;", "=r,r", [condition.to(gl.int32)],
        dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip
    return bits != 0


@gluon.jit
def scaling(row_unit, key_scale, INT8: gl.constexpr):
    """What brings raw scores to log2: a number, with INT8 one per row."""
    unit = row_unit
    if INT8:
        unit = row_unit * key_scale
    return unit


@gluon.jit
def exponentials(scores, highest, unit, INT8: gl.constexpr):
    """exp2(unit scores - highest)."""
    if INT8:
        offset = INTEGER_FLOAT * unit + highest
        return gl.exp2(scores.to(gl.float32, bitcast=True) * unit[:, None] - offset[:, None])
    else:
        return gl.exp2(scores * unit - highest[:, None])


@gluon.jit
def online_step(scores, highest, total, unit, INT8: gl.constexpr):
    """One step of the online softmax: weights, new maximum and sum, and the factor for the old."""
    if INT8:
        largest = gl.max(scores.to(gl.float32, bitcast=True), 1) - INTEGER_FLOAT
    else:
        largest = gl.max(scores, 1)
    new_highest = gl.maximum(highest, largest * unit)
    weights = exponentials(scores, new_highest, unit, INT8)
    rescale = gl.exp2(highest - new_highest)
    total = total * rescale + gl.sum(weights, 1)
    return weights, new_highest, total, rescale


@gluon.jit
def partial_sums(weights):
    """Four sums per row, each over what one thread holds: summed up behind the loop."""
    ROWS: gl.constexpr = weights.shape[0]
    COLUMNS: gl.constexpr = weights.shape[1]
    return gl.sum(gl.sum(weights.reshape([ROWS, COLUMNS // 8, 4, 2]), 3), 1)
