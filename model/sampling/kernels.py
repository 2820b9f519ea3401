"""The Triton kernels that ``on_cuda.py`` launches: a radix search for the cutoff, and the draw.

Legend: B rows, V vocabulary, S programs a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bpe_llama.model.sampling.uniform import GOLDEN, MIX_1, MIX_2

DIGIT_BITS = 4
DIGITS = tl.constexpr(1 << DIGIT_BITS)
# Logits that a program processes at a time, in the search and in the draw.
SEARCH_BLOCK = tl.constexpr(512)
DRAW_BLOCK = tl.constexpr(1024)
# Per row and round: the key's digits so far, the count and the mass above them, and the goal.
STATE = tl.constexpr(4)
_GOLDEN, _MIX_1, _MIX_2 = (tl.constexpr(word) for word in (GOLDEN, MIX_1, MIX_2))


@triton.jit
def _load(scores, row_stride, ids, inside):
    """Return a row's scores at some ids as float32, -inf outside the row."""
    place = tl.program_id(0).to(tl.int64) * row_stride + ids
    return tl.load(scores + place, mask=inside, other=-float("inf")).to(tl.float32)


@triton.jit
def _key(score, KEY_BITS: tl.constexpr):
    """Return the rank of a float32 among all floats, its highest KEY_BITS bits, int64; -0 and 0 have the same."""
    bits = score.to(tl.int32, bitcast=True)
    bits = tl.where(bits == -2147483648, 0, bits)
    ordered = tl.where(bits < 0, bits ^ 2147483647, bits).to(tl.int64) + 2147483648
    return ordered >> (32 - KEY_BITS)


@triton.jit
def _score(key, KEY_BITS: tl.constexpr):
    """Return the float32 of a key; of several with the same key, the one that the narrower type represents."""
    low = (key << (32 - KEY_BITS)) - 2147483648
    # The low bits of a narrower type are zeros; negative floats are in reverse order.
    low = tl.where(low < 0, (low + ((1 << (32 - KEY_BITS)) - 1)) ^ 2147483647, low)
    return low.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _weight(score, highest, inverse):
    """Return exp((score - highest) * inverse) in float64; 0 below e^-700, which is negligible."""
    z = (score.to(tl.float64) - highest) * inverse
    alive = z > -700.0
    z = tl.where(alive, z, 0.0)
    n = tl.floor(z * 1.4426950408889634 + 0.5)
    r = (z - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10
    # Taylor's series on [-ln(2)/2, ln(2)/2]: 3e-16 after eleven terms.
    q = r * 2.505210838544172e-08 + 2.755731922398589e-07
    q = q * r + 2.7557319223985893e-06
    q = q * r + 2.48015873015873e-05
    q = q * r + 0.0001984126984126984
    q = q * r + 0.001388888888888889
    q = q * r + 0.008333333333333333
    q = q * r + 0.041666666666666664
    q = q * r + 0.16666666666666666
    q = q * r + 0.5
    power = (q * r) * r + r + 1.0
    exponent = (n.to(tl.int64) + 1023) << 52
    return tl.where(alive, power * exponent.to(tl.float64, bitcast=True), 0.0)


@triton.jit
def _highest(extents, SPLITS: tl.constexpr):
    """Return a row's highest score in float64; NaN if the row holds NaN or +inf."""
    parts = tl.load(extents + tl.program_id(0) * SPLITS + tl.arange(0, SPLITS))
    broken = tl.max((parts != parts).to(tl.int32), 0) > 0
    return tl.where(broken, float("nan"), tl.max(tl.where(parts != parts, -float("inf"), parts), 0))


@triton.jit
def _extent(extents, scores, row_stride, vocab_size, chunk, SPLITS: tl.constexpr):
    """Write the highest score of each part of each row; NaN where it holds NaN or +inf."""
    part = tl.program_id(1)
    highest = tl.full((DRAW_BLOCK,), -float("inf"), tl.float32)
    broken = tl.zeros((DRAW_BLOCK,), tl.int32)
    for start in range(part * chunk, min((part + 1) * chunk, vocab_size), DRAW_BLOCK):
        ids = start + tl.arange(0, DRAW_BLOCK)
        score = _load(scores, row_stride, ids, ids < vocab_size)
        # False for NaN too.
        fine = score < float("inf")
        broken = tl.where(fine, broken, 1)
        highest = tl.maximum(highest, tl.where(fine, score, -float("inf")))
    result = tl.where(tl.max(broken, 0) > 0, float("nan"), tl.max(highest, 0).to(tl.float64))
    tl.store(extents + tl.program_id(0) * SPLITS + part, result)


@triton.jit
def _narrow(
    sums, state, base, goal, SPLITS: tl.constexpr, COUNTING: tl.constexpr, OF_BASE: tl.constexpr, ROUND: tl.constexpr
):
    """Return the result of the previous round: digits, count above, mass above, goal, count with the cutoff."""
    row = tl.program_id(0)
    digits = tl.arange(0, DIGITS)
    place = row * 2 * SPLITS * DIGITS + tl.arange(0, SPLITS)[:, None] * DIGITS + digits[None, :]
    counts = tl.sum(tl.load(sums + place), 0)
    masses = tl.sum(tl.load(sums + place + SPLITS * DIGITS), 0)
    prefix = tl.zeros((), tl.int64)
    above_count = tl.zeros((), tl.float64)
    above_mass = tl.zeros((), tl.float64)
    if ROUND > 1:
        prefix = tl.load(state + row * STATE).to(tl.int64)
        above_count = tl.load(state + row * STATE + 1)
        above_mass = tl.load(state + row * STATE + 2)
        goal = tl.load(state + row * STATE + 3)
    elif COUNTING:
        goal = goal + above_mass
    elif OF_BASE:
        goal = goal * tl.load(base + row * 3 + 2)
    else:
        goal = goal * tl.sum(tl.where(digits == 0, masses, 0.0), 0)
    reached = (counts if COUNTING else masses) >= goal
    digit = tl.max(tl.where(reached, digits, 0), 0)
    if digit + 1 < DIGITS:
        above_count = tl.sum(tl.where(digits == digit + 1, counts, 0.0), 0)
        above_mass = tl.sum(tl.where(digits == digit + 1, masses, 0.0), 0)
    count = tl.sum(tl.where(digits == digit, counts, 0.0), 0)
    return prefix * DIGITS + digit, above_count, above_mass, goal, count


@triton.jit(do_not_specialize=["unseen"])
def _weigh_digits(
    sums,
    sums_before,
    state,
    state_before,
    scores,
    row_stride,
    vocab_size,
    chunk,
    extents,
    base,
    unseen,
    goal: tl.float64,
    inverse: tl.float64,
    SPLITS: tl.constexpr,
    COUNTING: tl.constexpr,
    OF_BASE: tl.constexpr,
    KEY_BITS: tl.constexpr,
    ROUND: tl.constexpr,
):
    """Write count and mass of each part's logits at or above each value of the next digit, `unseen` bits below it.

    ROUND is 0 for the first, without a digit yet, 1 for the second, whose goal is not yet in the state, then 2.
    """
    row, part = tl.program_id(0), tl.program_id(1)
    prefix = tl.zeros((), tl.int64)
    if ROUND > 0:
        prefix, above_count, above_mass, goal, _ = _narrow(
            sums_before, state_before, base, goal, SPLITS, COUNTING, OF_BASE, ROUND
        )
        if part == 0:
            tl.store(state + row * STATE, prefix.to(tl.float64))
            tl.store(state + row * STATE + 1, above_count)
            tl.store(state + row * STATE + 2, above_mass)
            tl.store(state + row * STATE + 3, goal)
    highest = _highest(extents, SPLITS)
    digits = tl.arange(0, DIGITS)
    thresholds = (prefix * DIGITS + digits.to(tl.int64)) << unseen
    counts = tl.zeros((DIGITS,), tl.float64)
    masses = tl.zeros((DIGITS,), tl.float64)
    for start in range(part * chunk, min((part + 1) * chunk, vocab_size), SEARCH_BLOCK):
        ids = start + tl.arange(0, SEARCH_BLOCK)
        inside = ids < vocab_size
        score = _load(scores, row_stride, ids, inside)
        key = tl.where(inside, _key(score, KEY_BITS), -1)
        above = key[None, :] >= thresholds[:, None]
        counts += tl.sum(above.to(tl.int32), 1).to(tl.float64)
        masses += tl.sum(tl.where(above, _weight(score, highest, inverse)[None, :], 0.0), 1)
    place = row * 2 * SPLITS * DIGITS + part * DIGITS + digits
    tl.store(sums + place, counts)
    tl.store(sums + place + SPLITS * DIGITS, masses)


@triton.jit
def _settle(
    cutoff,
    sums,
    state,
    extents,
    base,
    goal: tl.float64,
    inverse: tl.float64,
    SPLITS: tl.constexpr,
    COUNTING: tl.constexpr,
    OF_BASE: tl.constexpr,
    KEEP_TIES: tl.constexpr,
    KEY_BITS: tl.constexpr,
):
    """Write each row's cutoff: its key, how many ids of equal score stay, and the mass kept.

    The lowest ids stay; the number is negative where the highest ids do.
    """
    row = tl.program_id(0)
    key, above_count, above_mass, goal, count = _narrow(sums, state, base, goal, SPLITS, COUNTING, OF_BASE, 2)
    weight = _weight(_score(key, KEY_BITS), _highest(extents, SPLITS), inverse)
    ties = count - above_count
    if COUNTING:
        if not KEEP_TIES:
            ties = tl.minimum(ties, goal - above_count)
    else:
        wanted = tl.ceil((goal - above_mass) / tl.where(weight > 0.0, weight, 1.0))
        ties = tl.minimum(ties, tl.maximum(wanted, 1.0))
    mass = above_mass + ties * weight
    if OF_BASE:
        # With p next to 1, rounding may put the goal beyond what ``base`` keeps: then all of it stays.
        base_key, base_ties = tl.load(base + row * 3).to(tl.int64), tl.load(base + row * 3 + 1)
        beyond = (key < base_key) | ((key == base_key) & (ties > base_ties))
        key, ties = tl.where(beyond, base_key, key), tl.where(beyond, base_ties, ties)
        mass = tl.where(beyond, tl.load(base + row * 3 + 2), mass)
    tl.store(cutoff + row * 3, key.to(tl.float64))
    if KEEP_TIES and not COUNTING:
        tl.store(cutoff + row * 3 + 1, -ties)
    else:
        tl.store(cutoff + row * 3 + 1, ties)
    tl.store(cutoff + row * 3 + 2, mass)


@triton.jit
def _judge(score, inside, cutoff, highest, gap, CUTOFF: tl.constexpr, KEY_BITS: tl.constexpr):
    """Return which scores are above the cutoff, and which are equal to it."""
    kept = inside & (score.to(tl.float64) >= highest + gap) & (score > -float("inf"))
    tied = kept & (score != score)
    if CUTOFF:
        key = _key(score, KEY_BITS)
        limit = tl.load(cutoff + tl.program_id(0) * 3).to(tl.int64)
        tied = kept & (key == limit)
        kept = kept & (key > limit)
    return kept, tied


@triton.jit
def _tally(
    tallies,
    scores,
    row_stride,
    vocab_size,
    chunk,
    extents,
    cutoff,
    gap: tl.float64,
    inverse: tl.float64,
    SPLITS: tl.constexpr,
    CUTOFF: tl.constexpr,
    KEY_BITS: tl.constexpr,
):
    """Write for each part the mass above the cutoff, and how many ids are equal to it."""
    row, part = tl.program_id(0), tl.program_id(1)
    highest = _highest(extents, SPLITS)
    mass = tl.zeros((DRAW_BLOCK,), tl.float64)
    ties = tl.zeros((DRAW_BLOCK,), tl.int32)
    for start in range(part * chunk, min((part + 1) * chunk, vocab_size), DRAW_BLOCK):
        ids = start + tl.arange(0, DRAW_BLOCK)
        inside = ids < vocab_size
        score = _load(scores, row_stride, ids, inside)
        kept, tied = _judge(score, inside, cutoff, highest, gap, CUTOFF, KEY_BITS)
        mass += tl.where(kept, _weight(score, highest, inverse), 0.0)
        ties += tied.to(tl.int32)
    tl.store(tallies + row * 2 * SPLITS + part, tl.sum(mass, 0))
    tl.store(tallies + row * 2 * SPLITS + SPLITS + part, tl.sum(ties, 0).to(tl.float64))


@triton.jit
def _uniform(seed, step):
    """Return the float64 of ``uniform(seed, step)``."""
    word = _mix(_mix(seed.to(tl.uint64, bitcast=True)) + (step.to(tl.uint64, bitcast=True) + 1) * _GOLDEN)
    return (word >> 11).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def _mix(word):
    word = (word ^ (word >> 30)) * _MIX_1
    word = (word ^ (word >> 27)) * _MIX_2
    return word ^ (word >> 31)


@triton.jit
def _draw(
    ids_out,
    tallies,
    seeds,
    steps,
    seed_stride,
    step_stride,
    scores,
    row_stride,
    vocab_size,
    chunk,
    extents,
    cutoff,
    gap: tl.float64,
    inverse: tl.float64,
    SPLITS: tl.constexpr,
    CUTOFF: tl.constexpr,
    KEY_BITS: tl.constexpr,
):
    """Write the first id, in id order, at which the cumulative kept mass exceeds a random share of the whole mass."""
    row = tl.program_id(0)
    highest = _highest(extents, SPLITS)
    parts = tl.arange(0, SPLITS)
    masses = tl.load(tallies + row * 2 * SPLITS + parts)
    room = tl.zeros((), tl.float64)
    skipped = tl.zeros((), tl.float64)
    weight = tl.zeros((), tl.float64)
    if CUTOFF:
        ties = tl.load(tallies + row * 2 * SPLITS + SPLITS + parts)
        before = tl.cumsum(ties, 0) - ties
        room = tl.load(cutoff + row * 3 + 1)
        all_ties = tl.sum(ties, 0)
        skipped = tl.where(room < 0.0, tl.maximum(all_ties + room, 0.0), 0.0)
        room = tl.where(room < 0.0, all_ties, room)
        weight = _weight(_score(tl.load(cutoff + row * 3).to(tl.int64), KEY_BITS), highest, inverse)
        masses += weight * tl.maximum(tl.minimum(before + ties, room) - tl.maximum(before, skipped), 0.0)
    passed = tl.cumsum(masses, 0)
    whole = tl.max(passed, 0)
    share = _uniform(tl.load(seeds + row * seed_stride), tl.load(steps + row * step_stride))
    # The product may round up to the mass itself, which no part exceeds: then the last part with mass has the id.
    target = share * whole
    last = tl.max(tl.where(masses > 0.0, parts, 0), 0)
    part = tl.minimum(tl.min(tl.where((passed > target) & (masses > 0.0), parts, SPLITS), 0), last)
    target -= tl.sum(tl.where(parts == part, passed - masses, 0.0), 0)
    if CUTOFF:
        passed_ties = tl.sum(tl.where(parts == part, before, 0.0), 0)
        room -= passed_ties
        skipped -= passed_ties
    chosen = vocab_size + 0 * part
    latest = -1 + 0 * part
    for start in range(part * chunk, min((part + 1) * chunk, vocab_size), DRAW_BLOCK):
        ids = start + tl.arange(0, DRAW_BLOCK)
        inside = ids < vocab_size
        score = _load(scores, row_stride, ids, inside)
        kept, tied = _judge(score, inside, cutoff, highest, gap, CUTOFF, KEY_BITS)
        rank = tl.cumsum(tied.to(tl.int32), 0).to(tl.float64)
        kept = kept | (tied & (rank <= room) & (rank > skipped))
        weights = tl.where(kept, _weight(score, highest, inverse), 0.0)
        mass = tl.cumsum(weights, 0)
        kept = weights > 0.0
        chosen = tl.minimum(chosen, tl.min(tl.where(kept & (mass > target), ids, vocab_size), 0))
        latest = tl.maximum(latest, tl.max(tl.where(kept, ids, -1), 0))
        target -= tl.sum(weights, 0)
        seen = tl.sum(tied.to(tl.int32), 0).to(tl.float64)
        room -= seen
        skipped -= seen
    # If rounding left the target beyond the last kept id, take that one.
    chosen = tl.where(chosen < vocab_size, chosen, latest)
    drawable = (highest == highest) & (highest > -float("inf"))
    tl.store(ids_out + row, tl.where(drawable, chosen, -1).to(tl.int64))
