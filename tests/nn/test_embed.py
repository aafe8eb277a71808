import pytest
import torch

from hstvg.nn.embed import embed_time, rotary_angles, rotate
from hstvg.scales import Scale, pool

CPU = torch.device("cpu")


def test_embed_time_by_hand():
    embedded = embed_time(torch.tensor([0.0, 0.5]), 4)
    assert embedded[0].tolist() == [0, 0, 1, 1]
    # Frequencies 1 and 1000: sin 0.5, sin 500, cos 0.5, cos 500.
    expected = pytest.approx([0.479426, -0.467772, 0.877583, -0.883849], abs=1e-4)
    assert embedded[1].tolist() == expected


def test_times_are_told_apart():
    embedded = embed_time(torch.linspace(0, 1, 101), 32)
    distance = torch.cdist(embedded, embedded) + 10 * torch.eye(101)
    assert distance.min() > 0.1


@pytest.mark.parametrize("dim", [6, 16, 32])
def test_rotary_is_relative(dim):
    """q . k depends on the difference of two cells' coordinates alone."""
    size = (3, 4, 2)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, dim, generator=generator, dtype=torch.float64)
    angles = rotary_angles(size, size, dim, CPU).double()
    turned_q = rotate(q.expand(1, 1, len(angles), dim), angles)[0, 0]
    turned_k = rotate(k.expand(1, 1, len(angles), dim), angles)[0, 0]
    products = turned_q @ turned_k.T
    cells = [(t, h, w) for t in range(3) for h in range(4) for w in range(2)]
    by_difference = {}
    for i, a in enumerate(cells):
        for j, b in enumerate(cells):
            difference = tuple(y - x for x, y in zip(a, b, strict=True))
            by_difference.setdefault(difference, []).append(products[i, j])
    spreads = [torch.stack(values).std(correction=0) for values in by_difference.values()]
    assert max(spreads) < 1e-5
    means = torch.stack([torch.stack(values).mean() for values in by_difference.values()])
    assert means.std() > 0.1


def test_rotation_keeps_lengths():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, 16, generator=generator)
    turned = rotate(x, rotary_angles((2, 2, 2), (8, 8, 8), 16, CPU))
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5)


@pytest.mark.parametrize("coarse", [(1, 1, 1), (2, 2, 2), (4, 1, 2)])
def test_a_coarse_cell_stands_at_the_mean_of_the_fine_cells_it_covers(coarse):
    fine = rotary_angles((4, 4, 4), (4, 4, 4), 32, CPU)
    grid = fine.T.reshape(1, -1, 4, 4, 4)
    expected = pool(grid, Scale(*coarse)).flatten(2)[0].T
    assert torch.allclose(rotary_angles(coarse, (4, 4, 4), 32, CPU), expected, atol=1e-5)
