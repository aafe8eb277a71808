import math

import pytest
import torch

from hstvg.generator.tracks import Tracks, draw_lookup, follow
from hstvg.nn.correspondence import Lookup
from hstvg.objective.attention import AttentionTerm
from hstvg.paths.draws import Draws
from hstvg.scales import Scale
from hstvg.types import LatentBatch, Pair, Prediction

SIZE = (5, 4, 8)


def still(*velocity):
    """A motion, in cells per frame where a frame lasts a second."""
    x, y = velocity
    field = torch.tensor([x, y], dtype=torch.float32) / SIZE[2]
    return field.view(1, 2, 1, 1, 1).expand(1, 2, *SIZE).clone()


def asked(frame, cell, later):
    return Lookup(
        frame=torch.tensor([[frame]]), cell=torch.tensor([[cell]]), later=torch.tensor([[later]])
    )


def where(motion, frame, cell, later, trust=None, still=1.0):
    trust = torch.ones(1, 1, *SIZE) if trust is None else trust
    draws = Draws(0, [0], torch.device("cpu"))
    lookup = asked(frame, cell, later)
    found = follow(motion, trust, lookup, Scale(*SIZE), seconds=1.0, draws=draws, still=still)
    return found.where[0, 0].reshape(SIZE[1:]), float(found.weight)


def test_a_cell_is_followed_right_and_down():
    found, weight = where(still(2, 1), 0, 9, 1)  # row 1, column 1
    assert found[2, 3] == 1
    assert weight == 1


def test_strides_add_up():
    found, _ = where(still(1, 0), 0, 9, 4)
    assert found[1, 5] == 1


def test_a_place_between_cells_is_shared():
    found, _ = where(still(0.25, 0), 1, 9, 2)
    assert found[1, 1] == pytest.approx(0.75)
    assert found[1, 2] == pytest.approx(0.25)
    assert found.sum() == pytest.approx(1)


def test_the_motion_met_on_the_way_counts():
    motion = still(1, 0)
    motion[:, :, 1, 1, 2] = torch.tensor([0, 1]) / SIZE[2]  # where the cell is in frame 1
    found, _ = where(motion, 0, 9, 2)
    assert found[2, 2] == 1


@pytest.mark.parametrize(
    ("still", "speed", "counts"),
    [(1.0, 0, 1), (0.0, 0, 0), (0.0, 0.25, 0.5), (0.0, 2, 1), (0.5, 0, 0.5), (0.5, 0.25, 0.75)],
)
def test_what_stays_may_count_less_than_what_moves_a_cell(still, speed, counts):
    motion = torch.zeros(1, 2, *SIZE)
    motion[:, 0] = speed / SIZE[2]
    _, weight = where(motion, 0, 9, 2, still=still)  # two frames later
    assert weight == pytest.approx(counts)


COARSE = Scale(2, 2, 4)


def coarsely(speed, count=64):
    """What is found of a cell of half the size in every axis, and a whole cell further right."""
    motion = torch.zeros(1, 2, 4, 4, 8)
    motion[:, 0] = speed / 8  # latent cells per latent frame
    lookup = Lookup(
        frame=torch.zeros(1, count).long(),
        cell=torch.full((1, count), 1),  # row 0, column 1
        later=torch.ones(1, count).long(),
    )
    draws = Draws(0, [0], torch.device("cpu"))
    found = follow(motion, torch.ones(1, 1, 4, 4, 8), lookup, COARSE, 1.0, draws, still=1.0)
    assert torch.allclose(found.where.sum(-1), torch.ones(1, count))
    return found.where[0]


def test_content_of_a_coarse_cell_goes_as_far_as_that_of_its_latent_cells():
    """A latent cell per frame is a coarse cell per coarse frame, whichever of them is followed."""
    assert (coarsely(1.0)[:, 2] == 1).all()


def test_content_of_a_coarse_cell_that_goes_half_as_far_comes_out_in_two():
    """Its left half stays within it, its right half leaves it."""
    where = coarsely(0.5)
    assert ((where[:, 1] == 1) | (where[:, 2] == 1)).all()
    assert 0.3 < where[:, 1].mean() < 0.7


@pytest.mark.parametrize("wrong", [{"queries": 0}, {"heads": -1}, {"still": -1.0}])
def test_settings_out_of_range_are_refused(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"tracks.{name}=.* is out of its range"):
        Tracks(num_frames=16, fps=8.0, **wrong)


def test_frames_of_longer_clips_are_as_far_apart():
    tracks = Tracks(num_frames=16, fps=8.0)
    assert tracks.seconds(4) == 0.5
    assert tracks.seconds(8, share=2.0) == 0.5


def test_what_leaves_the_frame_has_no_weight():
    _, weight = where(still(-1, 0), 0, 8, 1)  # column 0
    assert weight == 0


def test_a_track_is_trusted_as_its_parts_are():
    trust = torch.ones(1, 1, *SIZE)
    trust[:, :, 1, 1, 2] = 0.5
    _, weight = where(still(1, 0), 0, 9, 2, trust)
    assert weight == 0.5


def test_lookups_lie_in_the_grid_and_ahead():
    draws = Draws(0, range(50), torch.device("cpu"))
    lookup = draw_lookup(draws, Scale(*SIZE), 40)
    assert set((lookup.later - lookup.frame).unique().tolist()) == {1, 2, 4}
    assert lookup.later.max() == SIZE[0] - 1
    assert lookup.cell.min() == 0
    assert lookup.cell.max() == SIZE[1] * SIZE[2] - 1


def test_one_frame_has_none_ahead():
    with pytest.raises(ValueError, match="no later frame"):
        draw_lookup(Draws(0, [0], torch.device("cpu")), Scale(1, 4, 4), 3)


def batch_of(count):
    return LatentBatch(
        latent=torch.zeros(count, 1, 1, 1, 1),
        captions=("",) * count,
        positions=torch.arange(count),
        keys=("",) * count,
    )


def cost(rows, target, weight=None):
    pair = Pair(guess=rows.log(), target=target, weight=weight)
    return AttentionTerm()(Prediction(attention=(pair,)), batch_of(len(rows)))


def test_a_perfect_row_costs_nothing_and_a_uniform_one_log_n():
    target = torch.eye(8)[None, :, None]
    assert cost(target.clamp_min(1e-9), target) == pytest.approx(0, abs=1e-5)
    uniform = torch.full_like(target, 1 / 8)
    assert cost(uniform, target) == pytest.approx(math.log(8))


def test_looking_everywhere_is_what_skill_is_measured_against():
    target = torch.eye(8)[None, :, None].expand(2, -1, -1, -1)
    pair = Pair(guess=target.clamp_min(1e-9).log(), target=target)
    trivial = AttentionTerm().trivial(Prediction(attention=(pair,)), batch_of(2))
    assert trivial.tolist() == pytest.approx([math.log(8)] * 2)


def test_looking_at_the_same_place_costs_more_than_uniform_where_things_move():
    target = torch.eye(8).roll(1, 0)[None, :, None]
    stuck = (torch.eye(8) * 0.9 + 0.1 / 8)[None, :, None]
    assert cost(stuck, target) > math.log(8)


def test_untrusted_tracks_do_not_count():
    target = torch.eye(8)[None, :, None]
    uniform = torch.full_like(target, 1 / 8)
    weight = torch.zeros(1, 8, 1, 1)
    assert cost(uniform, target, weight) == 0
