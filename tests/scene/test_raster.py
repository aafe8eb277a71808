"""Layouts on a grid: shares of cells worked by hand, and the true ones against the picture."""

import numpy as np
import pytest
import torch

from hstvg.data.shapes import render, sample_scene
from hstvg.metrics.control import find_objects
from hstvg.scene.grammar import read_caption, write_caption
from hstvg.scene.layout import LABELS, places
from hstvg.scene.raster import in_latent_frames, raster
from hstvg.types import Layout


def layout_of(*boxes, present=None):
    """One clip of one frame, with an object in each box."""
    count = len(boxes)
    return Layout(
        boxes=torch.tensor(boxes).reshape(1, count, 1, 4),
        present=torch.tensor([present or [True] * count]),
        labels=(("red circle",) * count,),
    )


def test_cells_are_covered_by_their_share():
    # Columns of a quarter: a half of the second, all of the third; rows: all of the first of two.
    (got,) = raster(layout_of([0.375, 0.0, 0.75, 0.5]), (2, 4))[0]
    assert torch.allclose(got, torch.tensor([[[0.0, 0.5, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]))


def test_a_box_in_one_cell_covers_its_area_of_it():
    (got,) = raster(layout_of([0.55, 0.6, 0.65, 0.9]), (2, 2))[0]
    assert torch.allclose(got, torch.tensor([[[0.0, 0.0], [0.0, 0.1 * 0.3 * 4]]]))


def test_what_is_outside_covers_nothing():
    out = [[-0.5, 0.2, -0.1, 0.4], [1.0, 0.0, 1.5, 1.0], [0.1, 2.0, 0.2, 3.0]]
    assert not raster(layout_of(*out), (3, 5)).any()
    (half,) = raster(layout_of([-0.5, -1.0, 0.5, 2.0]), (2, 2))[0]
    assert half.tolist() == [[[1.0, 0.0], [1.0, 0.0]]]


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (3, 7), (32, 32)])
def test_cells_sum_to_the_area_in_the_frame(size):
    low = torch.rand(5, 3, 4, 2, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.4
    high = low + torch.rand(5, 3, 4, 2, generator=torch.Generator().manual_seed(1)) * 0.8
    layout = Layout(
        boxes=torch.cat([low, high], dim=-1),
        present=torch.ones(5, 3, dtype=torch.bool),
        labels=(("red circle",) * 3,) * 5,
    )
    got = raster(layout, size)
    assert got.shape == (5, 3, 4, *size)
    assert got.min() >= 0
    assert got.max() <= 1 + 1e-5
    area = (high.clamp(0, 1) - low.clamp(0, 1)).prod(-1)
    assert torch.allclose(got.mean((-2, -1)), area, atol=1e-5)


def test_what_is_not_there_covers_nothing():
    got = raster(
        layout_of([0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], present=[True, False]), (2, 2)
    )
    assert got.mean((2, 3, 4)).tolist() == [[1.0, 0.0]]


def test_the_frames_of_a_latent_lie_between_those_of_its_clip():
    path = torch.arange(8.0)[:, None] * torch.tensor([0.1, 0.0, 0.1, 0.0])
    layout = Layout(
        boxes=path.expand(2, 1, 8, 4),
        present=torch.ones(2, 1, dtype=torch.bool),
        labels=(("red circle",),) * 2,
    )
    got = in_latent_frames(layout, 4)
    assert torch.allclose(got.boxes[1, 0, :, 0], torch.tensor([0.05, 0.25, 0.45, 0.65]))
    assert got.labels == layout.labels
    assert torch.equal(in_latent_frames(layout, 8).boxes, layout.boxes)
    odd = in_latent_frames(Layout(**{**vars(layout), "boxes": layout.boxes[:, :, :5]}), 2)
    assert torch.allclose(odd.boxes[0, 0, :, 0], torch.tensor([0.0, 0.25]))


def layout_of_scene(scene, times_s):
    found = places(scene, times_s)
    return Layout(
        boxes=torch.from_numpy(found.boxes)[None],
        present=torch.from_numpy(found.labels >= 0)[None],
        labels=(tuple(LABELS[n] if n >= 0 else "" for n in found.labels),),
    )


def test_the_raster_of_a_scene_covers_what_is_seen_of_it():
    """What a judge of pixels finds of each object lies in the object's box, and in no mirrored one.

    Where two objects meet, a few blended pixels have the colour of a third.
    """
    frames, fps, side = 8, 4.0, 32
    inside, mirrored = [], []
    for seed in range(40):
        scene = sample_scene(seed, style_fraction=0.0, camera_fraction=0.5)
        pixels = render(scene, num_frames=frames, fps=fps, height=side, width=side).pixels
        layout = layout_of_scene(scene, np.arange(frames) / fps)
        cover = raster(layout, (side, side))[0] > 0
        seen = find_objects(pixels, read_caption(write_caption(scene)))
        for (colour, mask), label, box in zip(seen, layout.labels[0], cover, strict=False):
            if mask is not None and label.split()[0] == colour:  # and not hidden by another
                shown = torch.from_numpy(mask)
                inside.append(float((shown * box).sum() / shown.sum()))
                mirrored.append(float((shown * box.flip(-1)).sum() / shown.sum()))
    assert len(inside) > 70
    assert min(inside) > 0.75
    assert np.median(inside) == pytest.approx(1.0, abs=1e-4)
    assert np.mean(np.array(inside) > 0.98) > 0.95
    assert np.mean(mirrored) < 0.5
