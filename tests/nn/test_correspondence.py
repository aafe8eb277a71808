import math

import pytest
import torch

from hstvg.nn.correspondence import (
    TEMPERATURE,
    CellLikeness,
    CorrespondenceAttention,
    Lookup,
)


def lookup(frame, cell, later):
    return Lookup(frame=torch.tensor(frame), cell=torch.tensor(cell), later=torch.tensor(later))


def layer(**changed):
    torch.manual_seed(0)
    return CorrespondenceAttention(16, head_dim=8, **changed)


either = pytest.mark.parametrize(("asked", "heads"), [(layer(), 2), (CellLikeness(), 1)])


@either
def test_it_gives_nothing_at_first(asked, heads):
    x = torch.randn(2, 16, 3, 2, 4)
    out, rows = asked(x)
    assert torch.equal(out, x)
    assert rows is None


@either
def test_a_row_is_a_distribution_over_one_frame(asked, heads):
    x = torch.randn(2, 16, 3, 2, 4)
    _, rows = asked(x, lookup([[0, 1, 0], [1, 0, 0]], [[0, 7, 3], [2, 2, 5]], [[1, 2, 2]] * 2))
    assert rows.shape == (2, 3, heads, 8)
    assert torch.allclose(rows.exp().sum(-1), torch.ones(2, 3, heads), atol=1e-5)


@either
def test_a_row_depends_on_its_cell_and_the_later_frame_alone(asked, heads):
    x = torch.randn(1, 16, 3, 2, 4)
    where = lookup([[0]], [[5]], [[2]])
    _, before = asked(x, where)
    other = x.clone()
    other[:, :, 1] = torch.randn(1, 16, 2, 4)
    other[:, :, 0, 0] = torch.randn(1, 16, 4)  # cell 5 is in row 1
    _, after = asked(other, where)
    assert torch.allclose(before, after, atol=1e-6)
    other[:, :, 2, 0, 1] = torch.randn(1, 16)
    _, moved = asked(other, where)
    assert not torch.allclose(before, moved, atol=1e-3)


def test_what_looks_alike_is_found():
    """With equal projections for queries and keys a cell's own likeness scores highest."""
    attention = layer(heads=1)
    weight = torch.eye(8, 16) * 20
    with torch.no_grad():
        attention.heads.query.weight.copy_(weight)
        attention.heads.key_value.weight[:8].copy_(weight)
        attention.heads.gain_q.fill_(10.0)
    x = torch.zeros(1, 16, 2, 2, 4)
    x.flatten(3)[0, torch.arange(8), 0, torch.arange(8)] = 1.0
    x.flatten(3)[0, torch.arange(8), 1, torch.arange(8).roll(1)] = 1.0
    _, rows = attention(x, lookup([[0] * 8], [list(range(8))], [[1] * 8]))
    assert torch.equal(rows[0, :, 0].argmax(-1), torch.arange(8).roll(1))


def test_cells_are_as_like_as_the_angle_between_them():
    x = torch.zeros(1, 2, 2, 1, 2)
    x[0, 0, 0] = 3.0  # frame 0 points along the first axis
    x[0, :, 1, 0, 0] = torch.tensor([2.0, 0.0])
    x[0, :, 1, 0, 1] = torch.tensor([0.0, 5.0])
    _, rows = CellLikeness()(x, lookup([[0]], [[0]], [[1]]))
    odds = rows[0, 0, 0, 0] - rows[0, 0, 0, 1]
    assert float(odds) == pytest.approx(1 / TEMPERATURE, rel=1e-5)


@either
def test_equal_cells_make_a_uniform_row(asked, heads):
    _, rows = asked(torch.ones(1, 16, 2, 2, 4), lookup([[0]], [[0]], [[1]]))
    assert torch.allclose(rows, torch.full_like(rows, -math.log(8)), atol=1e-5)
