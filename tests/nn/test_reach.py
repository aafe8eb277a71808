import itertools

import pytest
import torch

from hstvg.nn.reach import BLOCK, CELL, PAGE, TEXT, Reach, Tokens
from hstvg.nn.transformer import attend

LENGTH, CELLS, WORDS, PAGES = 4, 2, 3, 2
"""Frames of a block, cells of a frame, words, pages of a block."""


def video(blocks, frames=1):
    """Every token of a video as (kind, block, frame): words, then block after block.

    Args:
        frames: of the final grid, per frame of this one.
    """
    tokens = [(TEXT, 0, 0)] * WORDS
    for block in range(blocks):
        tokens += [(BLOCK, block, 0)] + [(PAGE, block, 0)] * PAGES
        last = range(frames - 1, LENGTH, frames)
        tokens += [(CELL, block, frame) for frame in last for _ in range(CELLS)]
    return tokens


def table(tokens):
    kind, block, frame = (torch.tensor(column) for column in zip(*tokens, strict=True))
    return Tokens(kind=kind, block=block, frame=frame)


def reach(tokens, window=1, tail=2, real=None):
    ids = table(tokens)
    real = torch.ones(2, len(ids), dtype=torch.bool) if real is None else real
    return Reach(query=ids, key=ids, real=real, window=window, tail=tail, length=LENGTH)


def may(query, key, window, tail):
    """Whether a token may see another, said once more and in another way."""
    _, q_block, q_frame = query
    kind, block, frame = key
    if kind == TEXT:
        return True
    if block > q_block:
        return False
    if kind == BLOCK:
        return block < q_block
    if block == q_block:
        return kind == PAGE or abs(frame - q_frame) <= window
    if block == q_block - 1:
        return kind == PAGE or frame in range(LENGTH)[-tail:]
    return False


@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize(("window", "tail"), [(0, 1), (1, 2), (2, 4), (9, 3)])
def test_who_sees_whom_is_as_was_agreed(window, tail, frames):
    tokens = video(4, frames)
    cells = [i for i, token in enumerate(tokens) if token[0] == CELL]
    dense = reach(tokens, window, tail).dense()
    assert dense.shape == (2, 1, len(tokens), len(tokens))
    for q, k in itertools.product(cells, range(len(tokens))):
        seen = may(tokens[q], tokens[k], window, tail)
        assert bool(dense[0, 0, q, k]) == bool(dense[1, 0, q, k]) == seen, (tokens[q], tokens[k])


def test_what_a_cell_sees_counted_by_hand():
    tokens = video(4)
    dense = reach(tokens, window=1, tail=2).dense()[0, 0]
    counts = {}
    for q, (kind, block, frame) in enumerate(tokens):
        if kind == CELL:
            counts[block, frame] = int(dense[q].sum())
    # words + own pages + near cells (2 or 3 frames); then also pages and tail of the one before,
    # and a summary of each earlier block
    first = {0: 3 + 2 + 4, 1: 3 + 2 + 6, 2: 3 + 2 + 6, 3: 3 + 2 + 4}
    for (block, frame), count in counts.items():
        assert count == first[frame] + (block > 0) * (2 + 4) + block


def test_nothing_looks_ahead():
    tokens = video(3)
    dense = reach(tokens).dense()[0, 0]
    for q, k in itertools.product(range(len(tokens)), repeat=2):
        if tokens[k][0] != TEXT and tokens[k][1] > tokens[q][1]:
            assert not dense[q, k]


def test_nobody_sees_a_key_that_is_not_real():
    tokens = video(2)
    real = torch.ones(2, len(tokens), dtype=torch.bool)
    real[1, 5] = False
    dense, whole = reach(tokens, real=real).dense(), reach(tokens).dense()
    assert torch.equal(dense[0], whole[0])
    assert not dense[1, ..., 5].any()
    others = [i for i in range(len(tokens)) if i != 5]
    assert torch.equal(dense[1][..., others], whole[1][..., others])


def test_the_rule_is_the_same_for_every_kernel():
    from torch.nn.attention.flex_attention import create_mask

    tokens = video(3)
    real = torch.rand(2, len(tokens), generator=torch.Generator().manual_seed(0)) < 0.8
    who = reach(tokens, real=real)
    size = len(tokens)
    mask = create_mask(who.sees, 2, 1, size, size, device="cpu")
    assert torch.equal(mask, who.dense())


def test_flex_attention_and_its_block_mask_say_the_same():
    tokens = video(3)
    real = torch.ones(2, len(tokens), dtype=torch.bool)
    real[1, 4] = False
    who = reach(tokens, real=real)
    noise = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, len(tokens), 8, generator=noise)
    assert torch.allclose(attend(q, k, v, who.dense()), attend(q, k, v, who.blocks()), atol=1e-5)


def test_tokens_are_joined_in_order():
    words = Tokens.of(TEXT, torch.zeros(2).long(), torch.zeros(2).long())
    cells = Tokens.of(CELL, torch.tensor([3]), torch.tensor([1]))
    joined = Tokens.join(words, cells)
    assert len(joined) == 3
    assert joined.kind.tolist() == [TEXT, TEXT, CELL]
    assert joined.block.tolist() == [0, 0, 3]
    assert joined.frame.tolist() == [0, 0, 1]
