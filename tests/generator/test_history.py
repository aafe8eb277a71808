"""Blocks that know of those before them: what is drawn, how it is read, trained and sampled."""

from dataclasses import replace

import pytest
import test_hierarchical
import torch
from test_hierarchical import CAPTIONS, CODEC, CPU, OBJECTIVE, batch_of, draws

from hstvg.generator.generator import Generator, Sampling
from hstvg.generator.history import Earlier, History
from hstvg.generator.paged import paged_levels, recall, remember
from hstvg.paths.draws import Draws
from hstvg.scales import Scale
from hstvg.types import Condition, Hints, LatentBatch, Layout

T = CODEC.schedule.size.t
HISTORY = History(blocks=2, tail=2, page=2, window=1, noise=0.2)
SETTINGS = Sampling(steps=2, guidance=2.0)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generator(history=HISTORY, kinds=("local", "paged"), **changes):
    return test_hierarchical.generator(history=history, kinds=kinds, **changes)


def clips(blocks, rows=slice(None), space=(4, 4)):
    """Four clips of so many blocks, or some of them."""
    shape = (blocks * T, *space)
    parts = {"latent": noise(4, 4, *shape), "motion": noise(4, 2, *shape, seed=1)}
    parts["motion_confidence"] = noise(4, 1, *shape, seed=2).sigmoid()
    return LatentBatch(
        **{name: values[rows] for name, values in parts.items()},
        captions=CAPTIONS[rows],
        positions=torch.arange(10, 14)[rows],
        keys=tuple("0123")[rows],
    )


def earlier(count, blocks=1, known=None):
    """Blocks without noise on them."""
    known = torch.ones(count, blocks, dtype=torch.bool) if known is None else known
    frames = noise(count, blocks, 4, T, 4, 4, seed=5)
    return Earlier(frames=frames, known=known, noise=torch.zeros(count))


def condition(count=2):
    return Condition(
        text=noise(count, 3, 16, seed=7), text_mask=torch.ones(count, 3, dtype=torch.bool)
    )


# ---- what is drawn ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["blocks", "tail", "page", "window"])
def test_settings_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=rf"history\.{name}=0 is out of its range"):
        History(**{name: 0})
    with pytest.raises(ValueError, match=r"history\.noise=1\.5"):
        History(noise=1.5)


def test_one_block_is_learnt_and_those_before_are_its_history():
    z = torch.arange(12.0).view(1, 1, 12, 1, 1).expand(400, 4, 12, 2, 2)
    batch = LatentBatch(
        latent=z,
        motion=z[:, :2],
        motion_confidence=z[:, :1],
        captions=("",) * 400,
        positions=torch.arange(400),
        keys=("",) * 400,
        layout=Layout(
            boxes=z[:, :1, :, 0, :1].expand(-1, -1, -1, 4),
            present=torch.ones(400, 1, dtype=torch.bool),
            labels=(("red circle",),) * 400,
        ),
    )
    history = replace(HISTORY, noise=0.0)
    block, before = history.cut(batch, 4, Draws(0, range(400), CPU))
    number = block.latent[:, 0, 0, 0, 0] / 4
    assert number.unique().tolist() == [0, 1, 2]
    for count in (number == each for each in range(3)):
        assert count.float().mean() == pytest.approx(1 / 3, abs=0.08)
    for values in (block.latent, block.motion, block.motion_confidence, block.layout.boxes):
        first = values.flatten(1, 1)[:, 0, :]
        first = first.reshape(400, 4, -1)[..., 0]
        assert torch.equal(first, number[:, None] * 4 + torch.arange(4.0))
    assert before.known.tolist() == [[n > 1, n > 0] for n in number.tolist()]
    found = before.frames[:, :, 0, :, 0, 0]
    for slot, back in ((0, 2), (1, 1)):
        right = (number[:, None] - back) * 4 + torch.arange(4.0)
        assert torch.equal(found[:, slot], right * before.known[:, slot, None])


def test_history_is_as_noisy_as_is_told():
    batch = clips(3)
    batch = replace(batch, latent=torch.zeros_like(batch.latent))
    _, before = HISTORY.cut(batch, T, draws())
    for clip in range(4):
        if before.known[clip].any():
            found = before.frames[clip][before.known[clip]].std()
            assert found == pytest.approx(before.noise[clip].item(), rel=0.15)
            assert 0 < before.noise[clip] <= 0.2
        else:
            assert not before.frames[clip].any()
            assert before.noise[clip] == 0


def test_of_many_blocks_the_last_are_remembered():
    _, before = HISTORY.cut(clips(5), T, draws())
    assert before.frames.shape[1] == HISTORY.blocks
    _, before = HISTORY.cut(clips(1), T, draws())
    assert before.frames.shape[1] == 1
    assert not before.known.any()


def test_what_is_no_whole_block_is_refused():
    model, long = generator(), clips(2)
    odd = replace(
        long,
        latent=long.latent[:, :, :6],
        motion=long.motion[:, :, :6],
        motion_confidence=long.motion_confidence[:, :, :6],
    )
    with pytest.raises(ValueError, match="6 latent frames are no whole number of blocks of 4"):
        model.example(odd, CODEC, draws())


@pytest.mark.parametrize(
    "changes",
    [{"history": None}, {"kinds": ("local", "global")}, {"history": History(tail=5)}],
)
def test_history_and_paged_levels_need_each_other(changes):
    with pytest.raises(ValueError, match=r"need each other|a block has 4 latent frames"):
        generator(**changes)


# ---- how it is read ---------------------------------------------------------------------------


def velocity(unet, history, level=1, size=(4, 4, 4), count=2):
    told = replace(condition(count), history=history)
    return unet(noise(count, 6, *size, seed=3), torch.full((count,), 0.4), level, told)


KINDS = [("local", "paged"), ("paged", "global"), ("paged", "paged")]


@pytest.mark.parametrize("kinds", KINDS)
@torch.no_grad()
def test_shapes_and_silence_at_the_start(kinds):
    fresh = generator(kinds=kinds).unet
    for size in ((2, 2, 2), (4, 4, 4), (4, 8, 4)):
        for history in (None, recall(fresh, earlier(2, blocks=3))):
            found = velocity(fresh, history, size=size)
            assert found.shape == (2, 6, *size)
            assert not found.any()
    for level in paged_levels(fresh):
        x = noise(2, level.layers[0].leave.out_features, 2, 2, 2)
        told = replace(condition(), history=recall(fresh, earlier(2)))
        assert torch.equal(level(x, 0, told, level.view(x, told)), x)


@torch.no_grad()
def test_a_block_hears_the_one_before_and_the_summaries_of_older_ones():
    unet = generator(awake=True).eval().unet
    before = earlier(2, blocks=3)
    base = velocity(unet, recall(unet, before))
    for part in ((0, slice(None)), (1, slice(None)), (2, slice(0, 1)), (2, slice(3, 4))):
        frames = before.frames.clone()
        frames[:, part[0], :, part[1]] += 3
        heard = velocity(unet, recall(unet, replace(before, frames=frames)))
        assert not torch.allclose(heard, base, atol=1e-5)


@torch.no_grad()
def test_blocks_that_are_not_known_change_nothing():
    unet = generator(awake=True).eval().unet
    alone = velocity(unet, None)
    nothing = earlier(2, known=torch.zeros(2, 1, dtype=torch.bool))
    assert torch.allclose(velocity(unet, recall(unet, nothing)), alone, atol=1e-5)
    one = earlier(2, blocks=1)
    padded = Earlier(
        frames=torch.cat([noise(2, 1, 4, T, 4, 4, seed=8), one.frames], dim=1),
        known=torch.tensor([[False, True]] * 2),
        noise=one.noise,
    )
    told, of_two = (velocity(unet, recall(unet, each)) for each in (one, padded))
    assert torch.allclose(told, of_two, atol=1e-5)
    assert not torch.allclose(told, alone, atol=1e-4)


@torch.no_grad()
def test_the_noise_on_history_is_told():
    unet = generator(awake=True).eval().unet
    before = earlier(2)
    noisy = replace(before, noise=torch.full((2,), 0.1))
    told, bare = (velocity(unet, recall(unet, each)) for each in (noisy, before))
    assert not torch.allclose(told, bare, atol=1e-5)


@pytest.mark.parametrize("kinds", KINDS)
@torch.no_grad()
def test_one_block_after_another_is_read_as_all_at_once(kinds):
    """The cache of keys and values, in which older blocks shrink to their summaries."""
    unet = generator(awake=True, kinds=kinds, depth=2, history=replace(HISTORY, blocks=3)).unet
    blocks = noise(2, 5, 4, T, 4, 4, seed=5)
    kept = None
    for count in range(1, 6):
        kept = remember(unet, kept, blocks[:, count - 1])
        last = blocks[:, max(0, count - 3) : count]
        known = torch.ones(last.shape[:2], dtype=torch.bool)
        whole = recall(unet, Earlier(frames=last, known=known, noise=kept.noise))
        assert torch.equal(kept.known, known)
        for ours, theirs in zip(kept.layers, whole.layers, strict=True):
            assert torch.allclose(ours.keys, theirs.keys, atol=1e-5)
            assert torch.allclose(ours.values, theirs.values, atol=1e-5)
        for size, level in (((2, 2, 2), 0), ((4, 4, 4), 1)):
            found = [velocity(unet, each, level, size) for each in (kept, whole)]
            assert torch.allclose(*found, atol=1e-5)


@torch.no_grad()
def test_a_finished_block_is_read_once():
    model = generator(awake=True).eval()
    asked = []
    for level in paged_levels(model.unet):
        level.encoder.register_forward_hook(lambda *call: asked.append("encoder"))
        level.layers[0].past.register_forward_hook(lambda *call: asked.append("keys"))
    past = model.remember(None, noise(2, 4, T, 4, 4))
    past = model.remember(past, noise(2, 4, T, 4, 4, seed=1))
    assert asked == ["encoder", "keys"] * 2
    model.sample(CAPTIONS[:2], CODEC, draws(count=2), SETTINGS, hints=Hints(past=past))
    assert len(asked) == 4


@torch.no_grad()
def test_a_block_sparse_kernel_says_the_same():
    """As on a GPU from FLEX_FROM tokens on; without compilation it runs on a CPU, too."""
    unet = generator(awake=True).eval().unet
    (level,) = paged_levels(unet)
    x = noise(2, 32, 2, 2, 2)
    known = torch.tensor([[True, True], [False, False]])
    told = replace(condition(), history=recall(unet, earlier(2, 2, known)))
    view = level.view(x, told)
    sparse = replace(view, mask=level.reach(x, told, len(view.pages)).blocks())
    assert torch.allclose(level(x, 0, told, sparse), level(x, 0, told, view), atol=1e-5)


@torch.no_grad()
def test_a_cell_sees_no_further_than_its_window():
    """But through the summary of its page, which is hidden here."""
    level = paged_levels(generator(awake=True, kinds=("paged", "global")).unet)[0]
    x, told = noise(1, 16, 4, 4, 4), condition(1)
    view = level.view(x, told)
    mask = view.mask.clone()
    mask[..., 3 : 3 + len(view.pages)] = False
    other = x.clone()
    other[:, :, 3] += 1
    moved = [level(each, 0, told, replace(view, mask=mask)) for each in (x, other)]
    changed = (moved[0] != moved[1]).any(dim=1)[0].flatten(1).any(1)
    assert changed.tolist() == [False, False, True, True]


# ---- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_every_parameter_takes_part_from_the_first_step(blocks):
    model = generator(kinds=("paged", "paged"))
    OBJECTIVE(model(model.example(clips(blocks), CODEC, draws())), batch_of(4))[0].backward()
    assert [n for n, parameter in model.named_parameters() if parameter.grad is None] == []


def test_history_learns():
    model = generator(awake=True)
    made = model.example(clips(3), CODEC, draws())
    assert made.earlier.known.any()
    OBJECTIVE(model(made), batch_of(4))[0].backward()
    silent = [n for n, weight in model.named_parameters() if not weight.grad.abs().sum() > 0]
    assert silent == []


def test_recomputing_levels_changes_no_gradient():
    found = []
    for checkpointing in (False, True):
        model = generator(awake=True, checkpointing=checkpointing)
        made = model.example(clips(2), CODEC, draws())
        OBJECTIVE(model(made), batch_of(4))[0].backward()
        found.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


@torch.no_grad()
def test_a_part_of_the_batch_is_predicted_as_in_the_whole():
    model = generator(awake=True).eval()
    whole = model(model.example(clips(3), CODEC, draws()))
    part = model(model.example(clips(3, slice(2, 4)), CODEC, draws(12, 2)))
    for ours, theirs in zip(part.velocity, whole.velocity, strict=True):
        assert torch.allclose(ours.guess, theirs.guess[2:], atol=1e-5)
        assert torch.equal(ours.target, theirs.target[2:])


def test_clips_of_another_size_have_history_of_that_size():
    model = generator(awake=True)
    prediction = model(model.example(clips(2, space=(4, 8)), CODEC, draws()))
    assert prediction.velocity[-1].guess.shape == (4, 2, 4, T, 4, 8)


def test_without_history_a_longer_clip_is_one_of_another_size():
    model = test_hierarchical.generator()
    made = model.example(clips(2), CODEC, draws())
    assert made.earlier is None
    assert made.paths[-1].x.shape[2] == 2 * T
    assert model.remember is None


def test_it_learns_what_only_history_knows():
    """Every block shows what the first one does, and x at tau = 0 says nothing of it."""
    history = replace(HISTORY, noise=0.0)
    model = generator(history=history, kinds=("paged",), widths=(16,), draws=(1, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def batch(seed):
        z = noise(16, 4, 1, 1, 1, seed=seed).expand(-1, -1, 2 * T, 4, 4)
        motion = torch.zeros(16, 2, 2 * T, 4, 4)
        return LatentBatch(
            latent=z,
            motion=motion,
            motion_confidence=torch.ones_like(motion[:, :1]),
            captions=("",) * 16,
            positions=torch.arange(16),
            keys=("",) * 16,
        )

    for step in range(80):
        made = model.example(batch(step), CODEC, Draws(step, range(16), CPU))
        OBJECTIVE(model(made), batch_of(16))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    z = batch(999).latent[:, :, :T]
    past, where = model.remember(None, z), Draws(9, range(16), CPU)
    told, bare = (
        model.sample(("",) * 16, CODEC, where, Sampling(guidance=1), None, each).finest[:, :4]
        for each in (Hints(past=past), None)
    )
    errors = [(found - z).square().mean() for found in (told, bare)]
    assert errors[0] < 0.5 * errors[1]


# ---- sampling ---------------------------------------------------------------------------------


def write(model, captions, blocks, first=0, changed=None):
    """Latents of a video, block by block; one of them may be spoilt before it is remembered."""
    past, made = None, []
    for block in range(blocks):
        where = draws(first, len(captions)).within(f"block/{block}")
        z = model.sample(captions, CODEC, where, SETTINGS, hints=Hints(past=past)).finest
        made.append(z)
        z = z.clone()
        if changed == block:
            z[:, :, -1] += 2
        past = model.remember(past, z)
    return made


def test_three_blocks_are_written_and_none_knows_of_later_ones():
    model = generator(awake=True)
    assert isinstance(model, Generator)
    assert model.latent_size == Scale(*CODEC.schedule.size)
    whole = write(model, CAPTIONS[:2], 3)
    assert [z.shape for z in whole] == [(2, 6, 4, 4, 4)] * 3
    for ours, theirs in zip(write(model, CAPTIONS[:2], 2), whole, strict=False):
        assert torch.equal(ours, theirs)
    spoilt = write(model, CAPTIONS[:2], 3, changed=1)
    assert torch.equal(spoilt[0], whole[0])
    assert torch.equal(spoilt[1], whole[1])
    assert not torch.allclose(spoilt[2], whole[2], atol=1e-4)


def test_a_video_belongs_to_its_draws_and_caption():
    model = generator(awake=True)
    whole = write(model, CAPTIONS[:3], 3)
    alone = write(model, CAPTIONS[1:2], 3, first=1)
    for one, all_of_them in zip(alone, whole, strict=True):
        assert torch.allclose(one[0], all_of_them[1], atol=1e-4)
