import pytest
import torch

from hstvg.nn.warp import warp


def field(x, y, size=(2, 4, 6)):
    by = torch.empty(1, 2, *size)
    by[:, 0], by[:, 1] = x, y
    return by


@pytest.fixture
def cells():
    """Frames of 4 rows and 6 columns, all values different."""
    return torch.arange(1.0, 97.0).reshape(1, 2, 2, 4, 6)


def test_no_displacement_changes_nothing(cells):
    assert torch.allclose(warp(cells, field(0.0, 0.0)), cells, atol=1e-5)


def test_x_reads_along_the_columns(cells):
    moved = warp(cells, field(2.0, 0.0))
    assert torch.allclose(moved[..., :4], cells[..., 2:], atol=1e-4)
    assert torch.allclose(moved[..., 4:], cells[..., -1:].expand_as(moved[..., 4:]), atol=1e-4)


def test_y_reads_down_the_rows(cells):
    moved = warp(cells, field(0.0, -1.0))
    assert torch.allclose(moved[..., 1:, :], cells[..., :-1, :], atol=1e-4)
    assert torch.allclose(moved[..., 0, :], cells[..., 0, :], atol=1e-4)


def test_half_a_cell_is_the_mean_of_two(cells):
    moved = warp(cells, field(0.5, 0.0))
    between = (cells[..., :-1] + cells[..., 1:]) / 2
    assert torch.allclose(moved[..., :-1], between, atol=1e-4)


def test_every_cell_and_frame_has_its_own_displacement(cells):
    by = field(0.0, 0.0)
    by[0, :, 1, 3, 0] = torch.tensor([4.0, -2.0])
    moved = warp(cells, by)
    assert torch.allclose(moved[..., 1, 3, 0], cells[..., 1, 1, 4], atol=1e-4)
    moved[..., 1, 3, 0] = cells[..., 1, 3, 0]
    assert torch.allclose(moved, cells, atol=1e-4)


def test_half_precision_is_carried_in_full(cells):
    assert warp(cells.bfloat16(), field(1.0, 0.0).bfloat16()).dtype == torch.float32
