from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from hstvg.scales import ScaleSchedule, pool, upsample
from hstvg.tokenizer.codec import SMALLEST_DEVIATION, ScaleCodec
from hstvg.tokenizer.quantiser import BSQ, FSQ
from hstvg.types import Codec

SCHEDULES = {
    "cubic": ScaleSchedule.of_kind("cubic", (4, 8, 8)),
    "space": ScaleSchedule.of_kind("space", (4, 8, 8)),
    "frames": ScaleSchedule.of_kind("frames", (3, 4, 4)),
    "first-alone": ScaleSchedule.of_kind("cubic", (5, 4, 4), first_alone=True),
    "uneven": ScaleSchedule([[(1, 1, 1), (1, 3, 2), (3, 6, 4), (3, 6, 4)]]),
}
QUANTISERS = {"FSQ": FSQ(5), "BSQ": BSQ()}
SIZES = [
    *[(name, tuple(schedule.size)) for name, schedule in SCHEDULES.items()],
    *[("cubic", (2, 4, 8)), ("cubic", (8, 8, 8)), ("space", (3, 8, 4)), ("uneven", (6, 6, 8))],
    *[("frames", (1, 4, 4)), ("frames", (5, 4, 8))],
    *[("first-alone", (1, 4, 4)), ("first-alone", (9, 4, 4)), ("first-alone", (5, 8, 4))],
]
"""Of each schedule its own size, and others that it is resized to."""

each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
each_quantiser = pytest.mark.parametrize("quantiser", QUANTISERS.values(), ids=list(QUANTISERS))
each_size = pytest.mark.parametrize(("name", "size"), SIZES)


@pytest.fixture(autouse=True)
def _no_gradient():
    with torch.no_grad():
        yield


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def smooth(count, size, seed=0):
    """Latents as a tokenizer makes them: more of it coarse than fine, mean 0 and variance 1."""
    z = noise(count, 4, *size, seed=seed)
    for octave in (1, 2):
        coarse = noise(count, 4, *(max(1, n >> octave) for n in size), seed=seed + octave)
        z += octave * F.interpolate(coarse, size=tuple(size), mode="trilinear")
    axes = (0, 2, 3, 4)
    return (z - z.mean(axes, keepdim=True)) / z.std(axes, keepdim=True)


def codec(schedule, quantiser, *, awake=True, seen=None):
    """A codec whose detail guesses are arbitrary, as if trained, or silent.

    Args:
        seen: latents it has measured, as often as its deviations need to settle.
    """
    made = ScaleCodec(4, schedule, quantiser)
    torch.manual_seed(0)
    for upsampler in made.upsamplers if awake else ():
        for parameter in upsampler.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    for _ in range(0 if seen is None else 4):
        made.variance.count.zero_()
        made.usage.count.zero_()
        made.observe(made.measure(made.split(seen), seen.shape[2:]))
    return made


def befores(states, rungs):
    """z_hat_{k-1} of every rung, in its segment."""
    return [
        torch.zeros_like(state) if rung.depth == 0 else states[number - 1]
        for number, (state, rung) in enumerate(zip(states, rungs, strict=True))
    ]


def draw(codes, number, *, levels, share=0.3):
    """Other codes in a share of the places, the same at every call."""
    dice = torch.Generator().manual_seed(number)
    other = torch.randint(levels, codes.shape, generator=dice)
    return torch.where(torch.rand(codes.shape, generator=dice) < share, other, codes)


# ---- splitting and merging --------------------------------------------------------------------


@each_size
@each_quantiser
def test_without_quantisation_all_scales_together_are_the_latent(name, size, quantiser):
    made, z = codec(SCHEDULES[name], quantiser), noise(2, 4, *size)
    split = made.split(z, quantise=False)
    finest = made.pyramid(split.states, size).finest
    assert (finest - z).abs().max() < 1e-5
    rungs = SCHEDULES[name].resized(size).rungs
    for rung, asked, codes, residual, state in zip(
        rungs, split.pooled, split.codes, split.residuals, split.states, strict=True
    ):
        assert asked.shape[2:] == codes.shape[2:] == residual.shape[2:] == tuple(rung.scale)
        assert state.shape[2:] == tuple(rung.size)
        assert torch.equal(residual, asked)
        assert torch.equal(codes, made.encode(asked, rung))


@each_size
@each_quantiser
@pytest.mark.parametrize("quantise", [True, False])
def test_detail_never_touches_what_a_scale_has_said(name, size, quantiser, quantise):
    """D_k z_hat_k = D_k z_hat_{k-1} + r_k, whatever the detail guess."""
    z = smooth(2, size)
    made = codec(SCHEDULES[name], quantiser, seen=z)
    rungs = SCHEDULES[name].resized(size).rungs
    split = made.split(z, quantise=quantise)
    before = befores(split.states, rungs)
    for rung, was, residual, state in zip(
        rungs, before, split.residuals, split.states, strict=True
    ):
        expected = pool(was, rung.scale) + residual
        assert torch.allclose(pool(state, rung.scale), expected, atol=1e-5)
        assert torch.equal(state, was + made.upsamplers[rung.kind](residual, was))
        if not quantise:
            target = pool(z[:, :, rung.frames], rung.scale)
            assert torch.allclose(pool(state, rung.scale), target, atol=1e-5)


@each_size
@each_quantiser
def test_codes_are_of_what_is_left(name, size, quantiser):
    """a_k = D_k (z - z_hat_{k-1}), and r_k its nearest code times its deviation."""
    z = smooth(2, size)
    made = codec(SCHEDULES[name], quantiser, seen=z)
    rungs = SCHEDULES[name].resized(size).rungs
    split = made.split(z)
    for number, (rung, was) in enumerate(zip(rungs, befores(split.states, rungs), strict=True)):
        asked = pool(z[:, :, rung.frames] - was, rung.scale)
        sigma = made.deviation(rung)
        assert torch.equal(split.pooled[number], asked)
        assert torch.equal(split.codes[number], quantiser.encode(asked / sigma))
        assert torch.equal(split.residuals[number], quantiser.decode(split.codes[number]) * sigma)


@each_size
@each_quantiser
def test_codes_of_a_prefix_give_its_state(name, size, quantiser):
    z = smooth(2, size)
    made = codec(SCHEDULES[name], quantiser, seen=z)
    split = made.split(z)
    rungs = SCHEDULES[name].resized(size).rungs
    expected = torch.zeros_like(z)
    for count, (rung, state) in enumerate(zip(rungs, split.states, strict=True), start=1):
        expected[:, :, rung.frames] = state
        assert torch.allclose(made.merge(split.codes[:count], size), expected, atol=1e-5)
    if size == SCHEDULES[name].size:
        assert torch.allclose(made.merge(split.codes), expected, atol=1e-5)


@each_schedule
@each_quantiser
def test_every_scale_explains_more(schedule, quantiser):
    z = smooth(8, schedule.size)
    made = codec(schedule, quantiser, awake=False, seen=z)
    states = made.pyramid(made.split(z).states, schedule.size).levels
    assert len(states) == schedule.num_levels
    explained = [1 - ((z - state).square().mean() / z.var()).item() for state in states]
    assert all(coarse < fine for coarse, fine in pairwise([0, *explained]))
    assert explained[-1] > (0.8 if quantiser.levels > 2 else 0.5)


def test_a_repeated_scale_refines():
    """Its codes are of what the first pass left over, and of a smaller deviation."""
    schedule, z = SCHEDULES["uneven"], smooth(8, SCHEDULES["uneven"].size)
    made = codec(schedule, FSQ(5), seen=z)
    *_, once, twice = made.split(z).states
    assert (z - twice).square().mean() < 0.2 * (z - once).square().mean()
    *_, first, again = schedule.rungs
    assert (made.deviation(again) < 0.5 * made.deviation(first)).all()


def test_the_silent_codec_is_the_pooled_latent():
    schedule, z = SCHEDULES["cubic"], noise(2, 4, 4, 8, 8)
    split = codec(schedule, FSQ(5), awake=False).split(z, quantise=False)
    for rung, state in zip(schedule.rungs, split.states, strict=True):
        assert torch.allclose(state, upsample(pool(z, rung.scale), rung.size), atol=1e-6)


def test_a_detail_guess_changes_the_state_in_between():
    schedule, z = SCHEDULES["cubic"], noise(1, 4, 4, 8, 8)
    silent, awake = (
        codec(schedule, FSQ(5), awake=awake).split(z, quantise=False).states[1]
        for awake in (False, True)
    )
    assert not torch.allclose(silent, awake, atol=1e-2)


def test_a_latent_of_lower_precision_is_split_in_full():
    made = codec(SCHEDULES["cubic"], FSQ(5))
    z = noise(1, 4, 4, 8, 8).bfloat16()
    split = made.split(z, quantise=False)
    assert {part.dtype for part in (*split.pooled, *split.residuals, *split.states)} == {
        z.float().dtype
    }
    assert (split.states[-1] - z.float()).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("cubic", (6, 8, 8), "no whole size in 6x8x8"),
        ("first-alone", (4, 4, 4), "4 latent frames are not 1 and whole segments of 4"),
    ],
)
def test_a_latent_that_is_not_whole_in_rungs_is_refused(name, size, message):
    with pytest.raises(ValueError, match=message):
        codec(SCHEDULES[name], FSQ(5)).split(noise(1, 4, *size))


@each_schedule
def test_every_weight_is_used(schedule):
    """Those of a rung of full size would have nothing to guess."""
    z = smooth(2, schedule.size)
    made = codec(schedule, FSQ(5), seen=z)
    with torch.enable_grad():
        sum(state.square().sum() for state in made.split(z).states).backward()
    for kind, upsampler in enumerate(made.upsamplers):
        (rung, *_) = [rung for rung in schedule.rungs if rung.kind == kind]
        gradients = [parameter.grad for parameter in upsampler.parameters()]
        assert len(gradients) == (0 if rung.scale == rung.size else 1)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


# ---- the pyramid of the whole latent ----------------------------------------------------------


def test_a_shorter_ladder_stays_at_its_last_state():
    schedule = ScaleSchedule([[(1, 1, 1), (1, 2, 2)], [(1, 1, 1), (2, 1, 1), (2, 2, 2)]])
    made, z = codec(schedule, FSQ(5)), noise(1, 4, 3, 2, 2)
    split = made.split(z)
    image, clip = split.states[:2], split.states[2:]
    levels = made.pyramid(split.states, (3, 2, 2)).levels
    for level, (first, rest) in zip(
        levels, [(image[0], clip[0]), (image[1], clip[1]), (image[1], clip[2])], strict=True
    ):
        assert torch.equal(level, torch.cat([first, rest], dim=2))


# ---- self-correction --------------------------------------------------------------------------


@each_schedule
@each_quantiser
def test_targets_correct_what_a_corrupted_prefix_said(schedule, quantiser):
    """Codes of a rung are those of what is left after the corrupted codes before it."""
    z = smooth(2, schedule.size)
    made = codec(schedule, quantiser, seen=z)
    taken = []

    def corrupt(codes, number):
        taken.append(draw(codes, number, levels=quantiser.levels))
        return taken[-1]

    split = made.split(z, corrupt=corrupt)
    assert len(taken) == len(schedule.rungs)
    for number, rung in enumerate(schedule.rungs):
        prefix = torch.zeros_like(z)
        if number:
            prefix = made.merge(taken[:number])
        asked = pool((z - prefix)[:, :, rung.frames], rung.scale)
        assert torch.allclose(split.pooled[number], asked, atol=1e-5)
        right = quantiser.encode(split.pooled[number] / made.deviation(rung))
        assert torch.equal(split.codes[number], right)
        assert torch.equal(split.residuals[number], made.decode(taken[number], rung))
        assert torch.allclose(
            made.merge(taken[: number + 1])[:, :, rung.frames], split.states[number], atol=1e-5
        )


@each_schedule
def test_a_corrupted_rung_changes_later_targets_of_its_segment_alone(schedule):
    z = smooth(2, schedule.size)
    made = codec(schedule, FSQ(5), seen=z)
    plain = made.split(z).codes

    def corrupt(codes, number):
        return (codes + 2) % 5 if number == 0 else codes

    corrupted = made.split(z, corrupt=corrupt).codes
    for rung, one, other in zip(schedule.rungs, plain, corrupted, strict=True):
        assert torch.equal(one, other) == (rung.depth == 0 or rung.segment > 0)


def test_later_rungs_make_good_what_an_early_one_spoiled():
    """Codes that did not know of the mistake would leave it in the sum."""
    schedule, z = SCHEDULES["cubic"], smooth(8, (4, 8, 8))
    made = codec(schedule, FSQ(5), awake=False, seen=z)
    spoiled = [draw(made.split(z).codes[0], 0, levels=5, share=1.0)]
    split = made.split(z, corrupt=lambda codes, number: spoiled[0] if number == 0 else codes)
    corrected = made.merge([*spoiled, *split.codes[1:]])
    unaware = made.merge([*spoiled, *made.split(z).codes[1:]])
    assert (z - corrected).square().mean() < 0.7 * (z - unaware).square().mean()


@each_schedule
@each_quantiser
def test_corruption_by_nothing_changes_nothing(schedule, quantiser):
    z = smooth(2, schedule.size)
    made = codec(schedule, quantiser, seen=z)
    plain, same = made.split(z), made.split(z, corrupt=lambda codes, number: codes)
    for field in ("pooled", "codes", "residuals", "states"):
        for one, other in zip(getattr(plain, field), getattr(same, field), strict=True):
            assert torch.equal(one, other)


@each_schedule
def test_values_are_corrupted_where_they_are_not_quantised(schedule):
    """And what the last rung is asked for makes it good exactly."""
    made, z = codec(schedule, FSQ(5)), noise(1, 4, *schedule.size)
    rungs = schedule.rungs

    def corrupt(values, number):
        last = rungs[number].scale == rungs[number].size
        return values if last else values + noise(*values.shape, seed=number)

    plain, split = made.split(z, quantise=False), made.split(z, quantise=False, corrupt=corrupt)
    assert torch.equal(split.residuals[0], plain.pooled[0] + noise(*plain.pooled[0].shape))
    assert not torch.allclose(split.pooled[1], plain.pooled[1], atol=0.1)
    assert (made.pyramid(split.states, schedule.size).finest - z).abs().max() < 1e-5


# ---- statistics -------------------------------------------------------------------------------


@each_size
@each_quantiser
def test_what_is_measured_are_variances_and_frequencies(name, size, quantiser):
    schedule, z = SCHEDULES[name], smooth(3, size)
    made = codec(schedule, quantiser, seen=smooth(3, schedule.size, seed=9))
    split = made.split(z)
    known = made.variance.value.clone()
    means = made.measure(split, size)
    rungs = schedule.resized(size).rungs
    present = {rung.kind for rung in rungs}
    for kind in range(len(made.upsamplers)):
        own = [number for number, rung in enumerate(rungs) if rung.kind == kind]
        for channel in range(4):
            if kind not in present:
                assert means["codec/variance"][kind, channel] == known[kind, channel]
                continue
            values = torch.cat([split.pooled[number][:, channel].flatten() for number in own])
            codes = torch.cat([split.codes[number][:, channel].flatten() for number in own])
            frequencies = torch.bincount(codes, minlength=quantiser.levels) / len(codes)
            variance = values.square().mean().item()
            assert means["codec/variance"][kind, channel].item() == pytest.approx(
                variance, rel=1e-4
            )
            assert torch.allclose(means["codec/usage"][kind, channel], frequencies, atol=1e-6)


def test_what_was_measured_becomes_the_deviation():
    schedule, z = SCHEDULES["cubic"], smooth(3, (4, 8, 8))
    made = codec(schedule, FSQ(5))
    split = made.split(z)
    made.observe(made.measure(split, schedule.size))
    for rung, asked in zip(schedule.rungs, split.pooled, strict=True):
        deviation = asked.square().mean((0, 2, 3, 4)).sqrt()
        assert torch.allclose(made.deviation(rung).flatten(), deviation, rtol=1e-4)


@each_schedule
@each_quantiser
def test_entropies_are_shares(schedule, quantiser):
    entropy = codec(schedule, quantiser, seen=smooth(8, schedule.size)).entropy()
    assert entropy.shape == (sum(len(ladder) for ladder in schedule.ladders),)
    assert (entropy > 0.3).all()
    assert (entropy < 1 + 1e-6).all()


def test_entropy_by_hand():
    """All codes alike 1, one code alone 0, two of five equally ln 2 / ln 5; mean of channels."""
    made = ScaleCodec(2, ScaleSchedule([[(1, 1, 1)]]), FSQ(5))
    assert made.entropy().item() == 0
    usage = made.usage.value
    usage[0] = 0.2
    assert made.entropy().item() == pytest.approx(1)
    usage[0] = torch.tensor([0.0, 0, 1, 0, 0])
    assert made.entropy().item() == pytest.approx(0)
    usage[0, 0] = torch.tensor([0.5, 0, 0, 0, 0.5])
    assert made.entropy().item() == pytest.approx(0.430677 / 2, abs=1e-5)


@each_schedule
@each_quantiser
def test_a_dead_channel_stays_finite(schedule, quantiser):
    z = smooth(2, schedule.size)
    z[:, 1] = 0
    made = codec(schedule, quantiser, awake=False, seen=z)
    assert all((made.deviation(rung)[1] >= SMALLEST_DEVIATION).all() for rung in schedule.rungs)
    split = made.split(z)
    for part in (*split.pooled, *split.residuals, *split.states, made.merge(split.codes)):
        assert part.isfinite().all()
        # BSQ has no code for nothing: with all its rungs it is off by what it has for least.
        assert part[:, 1].abs().max() < len(schedule.rungs) * SMALLEST_DEVIATION
    assert all(value.isfinite().all() for value in made.measure(split, schedule.size).values())
    assert made.entropy().isfinite().all()


# ---- by hand ----------------------------------------------------------------------------------


def test_codes_by_hand():
    """2 and 6 in fives from -2 to 2: the mean 4 is clipped to 2, of what is left, 0 and 4, also 4.

    With a deviation of 4 the mean is its 1, and the rest is told exactly.
    """
    made = ScaleCodec(1, ScaleSchedule([[(1, 1, 1), (1, 1, 2)]]), FSQ(5, reach=2))
    z = torch.tensor([2.0, 6.0]).reshape(1, 1, 1, 1, 2)

    def flat(parts):
        return [part.flatten().tolist() for part in parts]

    split = made.split(z)
    assert flat(split.pooled) == [[4], [0, 4]]
    assert flat(split.codes) == [[4], [2, 4]]
    assert flat(split.residuals) == [[2], [0, 2]]
    assert flat(split.states) == [[2, 2], [2, 4]]
    made.variance.value[0] = 16
    split = made.split(z)
    assert flat(split.codes) == [[3], [0, 4]]
    assert flat(split.residuals) == [[4], [-2, 2]]
    assert flat(split.states) == [[4, 4], [2, 6]]
    assert made.merge(split.codes[:1]).flatten().tolist() == [4, 4]


def test_residuals_by_hand():
    made = ScaleCodec(1, ScaleSchedule([[(1, 1, 1), (1, 1, 2)]]), BSQ())
    assert isinstance(made, Codec)
    assert made.levels == 2
    split = made.split(torch.tensor([2.0, 6.0]).reshape(1, 1, 1, 1, 2), quantise=False)
    assert split.residuals[0].item() == 4
    assert split.residuals[1].flatten().tolist() == [-2, 2]
    assert split.states[0].flatten().tolist() == [4, 4]
