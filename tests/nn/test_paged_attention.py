import pytest
import torch

from hstvg.nn.embed import rotary_angles
from hstvg.nn.paged_attention import KeyValue, PagedAttention, Summary, View, page_on, places
from hstvg.nn.resample import Factor

SIZE, REFERENCE = (4, 4, 4), (8, 8, 8)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(awake=False):
    torch.manual_seed(0)
    made = PagedAttention(16, 12, head_dim=8)
    if awake:
        with torch.no_grad():
            for weight in made.parameters():
                weight.add_(0.2 * torch.randn_like(weight))
    return made


def view(mask=None, size=SIZE):
    page = page_on(size, 2)
    cells, pages = places(size, page, REFERENCE, 8, torch.device("cpu"))
    return View(page=page, cells=cells, pages=pages, mask=mask)


@torch.no_grad()
def test_it_starts_as_the_identity():
    x = noise(2, 16, *SIZE)
    assert torch.equal(layer()(x, noise(2, 3, 12), None, view()), x)


@torch.no_grad()
def test_text_past_pages_and_cells_are_all_heard():
    model, x, text = layer(awake=True), noise(2, 16, *SIZE), noise(2, 3, 12, seed=1)
    past = model.past(noise(2, 5, 16, seed=2))
    base = model(x, text, past, view())
    for heard in (
        model(x, text.flip(0), past, view()),
        model(x, text, model.past(noise(2, 5, 16, seed=3)), view()),
        model(x, text, None, view()),
        model(x.flip(3), text, past, view()).flip(3),
    ):
        assert not torch.allclose(heard, base, atol=1e-4)
    pages = len(view().pages)
    hidden = torch.ones(2, 1, 64, 3 + 5 + pages + 64, dtype=torch.bool)
    assert torch.allclose(model(x, text, past, view(hidden)), base, atol=1e-5)
    hidden[..., 8 : 8 + pages] = False
    assert not torch.allclose(model(x, text, past, view(hidden)), base, atol=1e-4)


def test_every_weight_learns():
    model = layer(awake=True)
    past = model.past(noise(2, 5, 16, seed=2))
    model(noise(2, 16, *SIZE), noise(2, 3, 12, seed=1), past, view()).square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in model.parameters())


@torch.no_grad()
def test_a_summary_is_at_first_the_mean_and_then_of_what_matters():
    torch.manual_seed(0)
    summary, cells = Summary(16), noise(1, 16, *SIZE)
    mean = cells[:, :, :2, :2, :2].mean((2, 3, 4))
    made = summary(cells, Factor(2, 2, 2))
    assert made.shape == (1, 8, 16)
    assert torch.allclose(made[:, 0], summary.map(mean), atol=1e-6)
    summary.score.weight.fill_(0.0)
    summary.score.weight[0, 3] = 100.0
    patch = cells[0, :, :2, :2, :2].flatten(1)
    chosen = patch[:, patch[3].argmax()]
    made = summary(cells, Factor(2, 2, 2))[0, 0]
    assert torch.allclose(made, summary.map(chosen), atol=1e-4)


@torch.no_grad()
def test_keys_are_normed_and_split_into_heads():
    torch.manual_seed(0)
    keys, values = KeyValue(12, 16, 8)(noise(2, 3, 12))
    assert keys.shape == values.shape == (2, 2, 3, 8)
    assert torch.allclose(keys.square().mean(-1), torch.ones(2, 2, 3), atol=1e-4)


@pytest.mark.parametrize(
    ("size", "page", "cells"),
    [((8, 4, 4), 4, (4, 2, 2)), ((2, 1, 3), 4, (2, 1, 1)), ((6, 6, 2), 4, (3, 2, 2))],
)
def test_pages_tile_the_grid(size, page, cells):
    assert page_on(size, page) == cells


def test_a_summary_stands_in_the_middle_of_what_it_sums_up():
    size, page = (8, 8, 8), Factor(4, 2, 2)
    cells, pages = places(size, page, REFERENCE, 12, torch.device("cpu"), start=-8)
    assert torch.equal(cells, rotary_angles(size, REFERENCE, 12, torch.device("cpu"), start=-8))
    covered = cells.view(2, 4, 4, 2, 4, 2, -1).mean((1, 3, 5)).flatten(0, 2)
    assert torch.allclose(pages, covered, atol=1e-4)
