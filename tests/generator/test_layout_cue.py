from dataclasses import replace
from math import log

import pytest
import torch
from test_hierarchical import CODEC, CPU, draws, generator, latents

from hstvg.generator.layout import (
    Grounding,
    LayoutCue,
    Layouts,
    at_moments,
    near_over_far,
    pair_boxes,
    read_labels,
)
from hstvg.generator.tracks import Tracks
from hstvg.objective.attention import AttentionTerm, divergence, everywhere
from hstvg.paths.draws import Draws
from hstvg.scene.text import TextEncoder
from hstvg.types import Condition, Layout, Objects

ALWAYS = Layouts(dropout=0.0)
LABELS = (("red circle", "blue square", ""), ("red circle", "", ""), ("",) * 3, ("",) * 3)


def layout(count=4, frames=4):
    """Two objects, one, and none, in boxes that move right."""
    boxes = torch.zeros(4, 3, frames, 4)
    boxes[0, 0] = torch.tensor([0.0, 0.0, 0.5, 0.5])
    boxes[0, 1] = torch.tensor([0.25, 0.25, 0.75, 0.75])
    boxes[1, 0] = torch.tensor([0.0, 0.5, 0.25, 1.0])
    boxes[..., [0, 2]] += 0.1 * torch.arange(frames)[:, None] * (boxes[..., 2:3] > 0)
    present = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]).bool()
    return Layout(boxes=boxes[:count], present=present[:count], labels=LABELS[:count])


def awake(module, scale=0.05):
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(scale * torch.randn(weight.shape, generator=noise))
    return module


def told(objects, count=4):
    mask = torch.ones(count, 1).bool()
    return Condition(text=torch.zeros(count, 1, 16), text_mask=mask, objects=objects)


def objects_of(which=None):
    which = which or layout()
    return Objects(
        layout=which,
        meaning=torch.randn(*which.present.shape, 16, generator=torch.Generator().manual_seed(2)),
    )


def test_what_is_near_hides_what_is_far():
    cover = torch.tensor([1.0, 0.5, 1.0, 0.25]).view(1, 4, 1, 1, 1)
    got = near_over_far(cover).flatten()
    assert torch.equal(got, torch.tensor([0.0, 0.0, 0.75, 0.25]))
    assert got.sum() <= 1


def test_moments_begin_and_end_with_the_block():
    boxes = layout().boxes
    got = at_moments(boxes)
    assert torch.allclose(got[:, :, 0], boxes[:, :, 0])
    assert torch.allclose(got[:, :, -1], boxes[:, :, -1])
    assert at_moments(boxes[:, :, :1]).shape == got.shape


@torch.no_grad()
def test_paint_lies_in_the_boxes_and_nothing_is_painted_of_nothing():
    torch.manual_seed(0)
    cue = LayoutCue(Layouts(), 16)
    x = torch.zeros(4, 5, 4, 4, 4)
    paint = cue.beside(x, told(objects_of()))
    assert paint.shape == (4, 8, 4, 4, 4)
    assert paint[0, -1, 0].tolist() == [  # each covers cells in whole: 4 and 4, one in common
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [0, 1, 1, 0],
        [0, 0, 0, 0],
    ]
    assert not paint[2:].any()
    assert not cue.beside(x, told(None)).any()
    coarse = cue.beside(x[:, :, :2, :2, :2], told(objects_of()))
    pooled = torch.nn.functional.avg_pool3d(paint[1:2], 2)  # of one object nothing hides anything
    assert torch.allclose(coarse[1:2], pooled, atol=1e-6)


@torch.no_grad()
def test_tokens_of_nothing_are_zero():
    cue = awake(LayoutCue(Layouts(), 16))
    tokens = cue.tokens(torch.zeros(4, 32), told(objects_of()))
    assert tokens.abs().sum(-1).gt(0).tolist() == layout().present.tolist()
    assert not cue.tokens(torch.zeros(4, 32), told(None)).any()


def test_labels_mean_what_their_words_do():
    torch.manual_seed(0)
    text = TextEncoder(width=16, layers=1, heads=2)
    meaning = read_labels(layout(), text).objects(text).meaning
    assert torch.allclose(meaning[0, 0], meaning[1, 0])
    assert not torch.allclose(meaning[0, 0], meaning[0, 1], atol=1e-4)
    ids, mask = text.tokenize(["blue square"])
    assert torch.allclose(meaning[0, 1], text(ids, mask)[0].mean(0), atol=1e-5)


@torch.no_grad()
def test_no_layout_says_nothing_and_a_layout_is_heard():
    model = generator(awake=True, layout=ALWAYS).eval()
    batch = latents(layout=layout())
    made = model.example(batch, CODEC, draws())
    nobody = replace(layout(), present=torch.zeros(4, 3).bool())
    absent = model.example(latents(layout=nobody), CODEC, draws())
    heard, silent = (model(example).velocity[1].guess for example in (made, absent))
    without = model(replace(made, layout=None)).velocity[1].guess
    assert torch.allclose(silent, without, atol=1e-6)
    changed = (heard - silent).abs().amax(dim=(1, 2, 3, 4, 5)) > 1e-5
    assert changed.tolist() == [True, True, False, False]


@torch.no_grad()
def test_all_else_starts_as_it_would_without():
    bare, model = generator(), generator(layout=ALWAYS)
    ours = dict(model.named_parameters())
    for name, weight in bare.named_parameters():
        assert torch.equal(ours[name], weight), name


@torch.no_grad()
def test_layouts_are_dropped_by_clip_whatever_the_batch():
    model = generator(layout=Layouts(dropout=0.5))
    batch = latents(layout=layout())
    whole = model.example(batch, CODEC, draws()).layout.layout.present
    parts = [
        model.example(
            latents(
                slice(n, n + 1),
                layout=Layout(
                    boxes=layout().boxes[n : n + 1],
                    present=layout().present[n : n + 1],
                    labels=LABELS[n : n + 1],
                ),
            ),
            CODEC,
            Draws(0, [10 + n], CPU),
        ).layout.layout.present
        for n in range(4)
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_clips_without_their_layout_are_refused():
    with pytest.raises(ValueError, match=r"data\.layout=true"):
        generator(layout=ALWAYS).example(latents(), CODEC, draws())


def test_every_parameter_takes_part_at_every_step():
    model = awake(generator(layout=ALWAYS, tracks=Tracks(num_frames=16, fps=8.0)))
    for which in (layout(), replace(layout(), present=torch.zeros(4, 3).bool())):
        model.zero_grad()
        prediction = model(model.example(latents(layout=which), CODEC, draws()))
        loss = sum(pair.guess.float().square().mean() for pair in prediction.velocity)
        (loss + AttentionTerm()(prediction, latents()).mean()).backward()
        missing = [n for n, weight in model.named_parameters() if weight.grad is None]
        assert missing == []


# ---- grounding ----------------------------------------------------------------------------------


def rows(guess, tau=1.0):
    tau = torch.full((len(guess),), tau)
    return pair_boxes(guess, layout(), tau, (4, 4, 4))


def test_looking_in_the_box_alone_costs_nothing_and_all_else_costs_more():
    even = torch.full((4, 3, 4, 16), -log(16))
    truth = rows(even).target[:, 0]
    assert torch.allclose(truth[0, 0, 0].view(4, 4)[:2, :2], torch.tensor(0.25))
    perfect = divergence(rows(truth.clamp_min(1e-12).log()))
    assert torch.allclose(perfect, torch.zeros(4), atol=1e-5)
    uniform = divergence(rows(even))
    assert torch.allclose(uniform[2:], torch.zeros(2))  # nothing is looked for
    frozen = truth[:, :, :1].expand_as(truth)  # where it was at first
    wrong = truth.flip(3)
    for cheat in (frozen, wrong):
        assert (divergence(rows(cheat.clamp_min(1e-12).log()))[:2] > perfect[:2] + 0.1).all()
    assert (uniform[:2] > 0.5).all()
    assert torch.equal(everywhere([rows(truth.log())])[0].guess[:, 0], even)


def test_an_object_that_left_the_screen_is_not_looked_for():
    away = replace(layout(), boxes=layout().boxes + 2.0)
    guess = torch.randn(4, 3, 4, 16).log_softmax(-1)
    pair = pair_boxes(guess, away, torch.ones(4), (4, 4, 4))
    assert not divergence(pair).any()


def test_grounding_says_nothing_at_first_and_its_rows_are_probabilities():
    torch.manual_seed(0)
    head = Grounding(16, 8, head_dim=16)
    x, tokens = torch.randn(2, 16, 2, 4, 4), torch.randn(2, 3, 8)
    out, logs = head(x, tokens)
    assert torch.equal(out, x)
    assert logs.shape == (2, 3, 2, 16)
    assert torch.allclose(logs.exp().sum(-1), torch.ones(2, 3, 2))


def test_grounding_is_learnt_by_its_own_heads_and_the_cue():
    model = awake(generator(layout=ALWAYS, tracks=Tracks(num_frames=16, fps=8.0)))
    made = model.example(latents(layout=layout()), CODEC, draws())
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        pairs = model(made).grounding
        loss = torch.stack([divergence(pair) for pair in pairs]).mean()
        optimiser.zero_grad()
        loss.backward()
        assert model.unet.leave.weight.grad is None
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
