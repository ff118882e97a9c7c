"""Group: keys of a block by what sampled queries score, and what stands for each group.

    f_t = c (q_1·k_t, ..., q_R·k_t)     k-means on f: farthest-first seeds, `ROUNDS` of Lloyd
    k̄_g, v̄_g, log2 n_g, ½ c² v_g        over the tokens of group g, v_g the mean variance of k

One program per kv-block, which reads its keys and values once. A group without tokens has
log2 n_g = -inf. Specification: rspa_core/key_groups.py.
"""

import triton
import triton.language as tl


@triton.jit
def _from_centre(features, centres, number, GROUPS: tl.constexpr):
    """Squared distance of every key [BLOCK] from centre `number` of `centres` [GROUPS, R]."""
    groups = tl.arange(0, GROUPS)
    centre = tl.sum(tl.where((groups == number)[:, None], centres, 0.0), 0)
    difference = features - centre[None, :]
    return tl.sum(difference * difference, 1)


@triton.jit
def _nearest(features, centres, GROUPS: tl.constexpr):
    """Number of the nearest centre of every key, the lowest of equals."""
    nearest = _from_centre(features, centres, 0, GROUPS)
    labels = tl.zeros_like(nearest).to(tl.int32)
    for group in tl.static_range(1, GROUPS):
        distance = _from_centre(features, centres, group, GROUPS)
        nearer = distance < nearest
        labels = tl.where(nearer, group, labels)
        nearest = tl.where(nearer, distance, nearest)
    return labels


@triton.jit(do_not_specialize=["first_head", "num_heads", "tail_length"])
def group_kernel(
    k,  # [B, H, N, D], any strides
    v,  # [B, H, N, D], any strides
    source,  # [NB * BLOCK] int32: token at each packed position, -1 for padding
    queries,  # [B * H, R, DP] dtype of k: the sampled queries, zeros behind D
    shift,  # [B * H, D] fp32, taken off tail_k, or None
    tail_k,  # [HC, tail_length, DP] dtype of k: k̄_g at j G + g, written
    tail_v,  # [HC, tail_length, DP], written
    tail_size,  # [HC, tail_length] fp32: log2 n_g, written
    tail_variance,  # [HC, tail_length] fp32: ½ c² v_g, written
    first_head,
    num_heads,
    tail_length,
    stride_b,
    stride_h,
    stride_n,
    stride_d,
    v_stride_b,
    v_stride_h,
    v_stride_n,
    v_stride_d,
    scale,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    R: tl.constexpr,
    ROUNDS: tl.constexpr,
    SHIFTED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    batch_head = first_head + head
    rows = tl.arange(0, BLOCK)
    cols = tl.arange(0, DP)
    token = tl.load(source + block * BLOCK + rows)
    is_token = token >= 0
    inside = is_token[:, None] & (cols < D)[None, :]
    base = (batch_head // num_heads) * stride_b + (batch_head % num_heads) * stride_h
    offsets = base + token.to(tl.int64)[:, None] * stride_n + cols.to(tl.int64)[None, :] * stride_d
    keys = tl.load(k + offsets, mask=inside, other=0.0)  # [BLOCK, DP]

    asked = tl.arange(0, R)[:, None] * DP + cols[None, :]
    asked = tl.load(queries + batch_head * R * DP + asked)  # [R, DP]
    features = scale * tl.dot(keys, tl.trans(asked), input_precision=PRECISION)  # [BLOCK, R]
    length = tl.sum(is_token.to(tl.float32), 0)
    mean = tl.sum(features, 0) / length  # rows behind the last token are zero
    difference = features - mean[None, :]
    distance = tl.sum(difference * difference, 1)
    groups = tl.arange(0, GROUPS)
    centres = tl.zeros([GROUPS, R], tl.float32)
    for group in tl.static_range(GROUPS):
        seed = tl.argmax(tl.where(is_token, distance, -1.0), 0)
        centre = tl.sum(tl.where((rows == seed)[:, None], features, 0.0), 0)
        centres = tl.where((groups == group)[:, None], centre[None, :], centres)
        from_seed = features - centre[None, :]
        from_seed = tl.sum(from_seed * from_seed, 1)
        distance = from_seed if group == 0 else tl.minimum(distance, from_seed)
    labels = _nearest(features, centres, GROUPS)
    for _ in tl.static_range(ROUNDS):
        for group in tl.static_range(GROUPS):
            member = tl.where(is_token, labels, -1) == group
            count = tl.sum(member.to(tl.float32), 0)
            centre = tl.sum(tl.where(member[:, None], features, 0.0), 0) / tl.maximum(count, 1.0)
            # A group without keys keeps its centre.
            moved = tl.where(count > 0, group, -1)
            centres = tl.where((groups == moved)[:, None], centre[None, :], centres)
        labels = _nearest(features, centres, GROUPS)

    # Means of all groups at once: a product with the 0/1 matrix of the members is exact.
    numbers = tl.arange(0, 16)
    member = tl.where(is_token, labels, -1)[None, :] == numbers[:, None]  # [16, BLOCK]
    counts = tl.sum(member.to(tl.float32), 1)
    share = 1.0 / tl.maximum(counts, 1.0)
    members = member.to(keys.dtype)
    out_row = head * tail_length + block * GROUPS + numbers
    written = numbers < GROUPS
    out_offsets = out_row[:, None] * DP + cols[None, :]
    averages = tl.dot(members, keys, input_precision=PRECISION) * share[:, None]
    # The spread about the block's mean less that of the group's: the digits are kept.
    block_mean = tl.sum(keys.to(tl.float32), 0) / length
    centred = tl.where(inside, keys.to(tl.float32) - block_mean[None, :], 0.0)
    squares = tl.sum(centred * centred, 1)
    squares = tl.sum(tl.where(member, squares[None, :], 0.0), 1) * share
    apart = averages - block_mean[None, :]
    variance = tl.maximum(squares - tl.sum(apart * apart, 1), 0.0) / D
    if SHIFTED:
        averages -= tl.load(shift + batch_head * D + cols, mask=cols < D, other=0.0)[None, :]
    averages = averages.to(tail_k.dtype.element_ty)
    tl.store(tail_k + out_offsets, averages, mask=written[:, None])
    size = tl.where(counts > 0, tl.log2(tl.maximum(counts, 1.0)), float("-inf"))
    tl.store(tail_size + out_row, size, mask=written)
    tl.store(tail_variance + out_row, 0.5 * scale * scale * variance, mask=written)

    base = (batch_head // num_heads) * v_stride_b + (batch_head % num_heads) * v_stride_h
    offsets = token.to(tl.int64)[:, None] * v_stride_n + cols.to(tl.int64)[None, :] * v_stride_d
    values = tl.load(v + base + offsets, mask=inside, other=0.0)
    averages = tl.dot(members, values, input_precision=PRECISION) * share[:, None]
    tl.store(tail_v + out_offsets, averages.to(tail_v.dtype.element_ty), mask=written[:, None])
