import inspect
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
import torch

from hstvg.objective.codec import CodecTerm
from hstvg.objective.commitment import CommitmentTerm
from hstvg.objective.kl import KLTerm
from hstvg.objective.objective import Objective, WeightedTerm
from hstvg.objective.reconstruction import ReconstructionTerm
from hstvg.paths.draws import Draws
from hstvg.tokenizer.quantiser import BSQ
from hstvg.tokenizer.video_tokenizer import VideoTokenizer
from hstvg.train.loop import psnr
from hstvg.train.tokenizer_stage import TokenizerStage
from hstvg.types import Codec, Tokenizer, VideoBatch

OBJECTIVE = Objective(
    {
        "reconstruction": WeightedTerm(ReconstructionTerm(epsilon=0.3), 3.0),
        "kl": WeightedTerm(KLTerm(), 1e-6),
        "codec": WeightedTerm(CodecTerm(), 0.01),
        "commitment": WeightedTerm(CommitmentTerm(), 0.01),
    }
)


def tokenizer(clip_size=(8, 16, 16), *, awake=False, **options):
    """A small tokenizer; awake, its zero-initialised layers speak too."""
    torch.manual_seed(0)
    made = VideoTokenizer(clip_size=clip_size, **{"channels": 4, "base": 4, "depth": 1, **options})
    if awake:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def clips(count=2, size=(8, 16, 16)):
    """A soft spot in a colour of its own that moves over a shaded background."""
    T, H, W = size
    t = torch.arange(T).view(1, T, 1, 1)
    rows = torch.linspace(-1, 1, H).view(1, 1, H, 1)
    columns = torch.linspace(-1, 1, W).view(1, 1, 1, W)
    which = torch.arange(count).view(count, 1, 1, 1)
    angle = 1.3 * which + 0.3 * t
    spot = torch.exp(-6 * ((rows - angle.sin() / 2) ** 2 + (columns - angle.cos() / 2) ** 2))
    shade = 0.3 * (rows * which.cos() + columns * which.sin()).expand(count, T, H, W)
    colour = torch.stack([(which + channel).float().cos() for channel in range(3)], dim=1)
    return (colour * spot[:, None] + shade[:, None]).clamp(-1, 1)


def observed(model, seen):
    """The model after one step of statistics, of all these clips."""
    with torch.no_grad():
        raw = model.posterior(seen).mean
        moments = model.measure(raw)
        model.mean.observe(moments["latent/mean"])
        model.square.observe(moments["latent/square"])
        z = model.standardise(raw)
        model.codec.observe(model.codec.measure(model.codec.split(z), z.shape[2:]))
    return model


# ---- sizes ------------------------------------------------------------------------------------

SHAPES = [
    ((16, 32, 32), (2, 4, 4), "n", (8, 8, 8)),
    ((8, 16, 24), (2, 2, 2), "n", (4, 8, 12)),
    ((8, 32, 16), (4, 8, 8), "n", (2, 4, 2)),
    ((4, 16, 32), (2, 4, 8), "n", (2, 4, 4)),
    ((16, 8, 8), (8, 2, 2), "n", (2, 4, 4)),
    ((9, 16, 16), (2, 4, 4), "1+n", (5, 4, 4)),
    ((5, 16, 8), (4, 4, 4), "1+n", (2, 4, 2)),
    ((1, 16, 16), (2, 4, 4), "1+n", (1, 4, 4)),
]


@pytest.mark.parametrize(("clip_size", "strides", "time_mode", "latent"), SHAPES)
@torch.no_grad()
def test_shapes(clip_size, strides, time_mode, latent):
    model = tokenizer(clip_size, strides=strides, time_mode=time_mode)
    assert isinstance(model, Tokenizer)
    assert isinstance(model.codec, Codec)
    assert model.latent_size == model.schedule.size == model.size_of(clip_size) == latent
    pixels = torch.rand(2, 3, *clip_size) * 2 - 1
    posterior = model.posterior(pixels)
    assert posterior.mean.shape == posterior.logvar.shape == (2, 4, *latent)
    z = model.encode(pixels)
    assert z.shape == (2, 4, *latent)
    assert model.decode(z).shape == pixels.shape


@pytest.mark.parametrize(
    ("time_mode", "trained", "other", "latent"),
    [
        ("n", (8, 16, 16), (4, 32, 16), (2, 8, 4)),
        ("1+n", (5, 16, 16), (1, 16, 16), (1, 4, 4)),
        ("1+n", (5, 16, 16), (9, 8, 16), (5, 2, 4)),
    ],
)
@torch.no_grad()
def test_clips_of_another_size(time_mode, trained, other, latent):
    model = tokenizer(trained, time_mode=time_mode, awake=True)
    pixels = torch.rand(1, 3, *other) * 2 - 1
    assert model.size_of(other) == latent
    z = model.encode(pixels)
    codes = model.codec.split(z).codes
    assert model.codec.merge(codes, z.shape[2:]).shape == (1, 4, *latent)
    assert model.decode(z).shape == pixels.shape


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "1x1x1 2x2x2 4x4x4"),
        ({"schedule": "space"}, "4x1x1 4x2x2 4x4x4"),
        ({"schedule": "frames", "time_mode": "1+n"}, " | ".join(["1x1x1 1x2x2 1x4x4"] * 5)),
        ({"time_mode": "1+n"}, "1x1x1 1x2x2 1x4x4 | 1x1x1 2x2x2 4x4x4"),
        ({"schedule": [[(1, 1, 1), (4, 4, 4), (4, 4, 4)]]}, "1x1x1 4x4x4 4x4x4"),
    ],
)
def test_the_schedule_is_what_was_asked_for(options, expected):
    frames = 9 if options.get("time_mode") == "1+n" else 8
    assert str(tokenizer((frames, 16, 16), **options).schedule) == expected


def test_the_quantiser_is_what_was_asked_for():
    assert tokenizer().codec.levels == 5
    assert tokenizer(quantiser=BSQ()).codec.levels == 2


@pytest.mark.parametrize(
    ("clip_size", "options", "message"),
    [
        ((15, 32, 32), {}, r"n x 2, rows and columns multiples of 4 and 4"),
        ((16, 30, 32), {}, r"\(16, 30, 32\) is not whole in strides \(2, 4, 4\)"),
        ((16, 32, 34), {}, "not whole in strides"),
        ((16, 32, 32), {"time_mode": "1+n"}, r"frames must be 1 \+ n x 2"),
        ((0, 32, 32), {}, "not whole in strides"),
        ((8, 16, 16), {"strides": (2, 6, 4)}, "not powers of two"),
        ((8, 16, 16), {"strides": (1, 4, 4)}, "not powers of two of at least"),
        ((8, 16, 16), {"patch": (2, 8, 8)}, r"not powers of two of at least \(2, 8, 8\)"),
        ((8, 16, 16), {"patch": (2, 4, 4), "haar": True}, r"patch=\[2, 4, 4\]: with haar, 1 or 2"),
        ((2, 4, 4), {}, "1x1x1 has no coarser scale; enlarge the clip"),
        ((8, 16, 16), {"schedule": [[(1, 1, 1), (4, 4, 8)]]}, "of a latent of 4x4x8, not 4x4x4"),
        ((8, 16, 16), {"schedule": [[(3, 1, 1), (4, 4, 4)]]}, "3x1x1 does not divide"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(clip_size, options, message):
    with pytest.raises(ValueError, match=message):
        tokenizer(clip_size, **options)


def test_an_unknown_time_mode_is_refused():
    """Also where nobody checks types, as under a config."""
    build = inspect.unwrap(VideoTokenizer.__init__)
    with pytest.raises(ValueError, match=r'time_mode=n\+1: choose "n" or "1\+n"'):
        build(VideoTokenizer.__new__(VideoTokenizer), clip_size=(8, 16, 16), time_mode="n+1")


# ---- time -------------------------------------------------------------------------------------

KINDS = {
    "n": {"clip_size": (8, 16, 16)},
    "n, haar": {"clip_size": (8, 16, 16), "haar": True},
    "n, long strides": {"clip_size": (16, 16, 16), "strides": (4, 2, 4), "depth": 2},
    "1+n": {"clip_size": (7, 16, 16), "time_mode": "1+n"},
    "1+n, haar": {
        "clip_size": (13, 16, 16),
        "time_mode": "1+n",
        "haar": True,
        "strides": (4, 4, 4),
    },
}
"""Four groups of frames each."""
each_kind = pytest.mark.parametrize("options", KINDS.values(), ids=list(KINDS))


def first_frame(model, group):
    """Of a group."""
    alone = int(model.first_alone)
    return max(0, alone + (group - alone) * model.strides.t)


@each_kind
@torch.no_grad()
def test_encoding_does_not_see_the_future(options):
    model = tokenizer(awake=True, **options)
    pixels = clips(size=options["clip_size"])
    before = model.posterior(pixels)
    for group in range(1, 4):
        changed = pixels.clone()
        changed[:, :, first_frame(model, group) :] *= -0.5
        after = model.posterior(changed)
        for was, now in ((before.mean, after.mean), (before.logvar, after.logvar)):
            assert torch.equal(was[:, :, :group], now[:, :, :group])
            assert not torch.equal(was[:, :, group], now[:, :, group])


@each_kind
@torch.no_grad()
def test_decoding_does_not_see_the_future(options):
    model = tokenizer(awake=True, **options)
    z = torch.randn(2, 4, *model.latent_size)
    before = model.reconstruct(z)
    for group in range(1, 4):
        changed = z.clone()
        changed[:, :, group:] += 1
        after = model.reconstruct(changed)
        first, next_ = first_frame(model, group), first_frame(model, group + 1)
        assert torch.equal(before[:, :, :first], after[:, :, :first])
        assert not torch.equal(before[:, :, first:next_], after[:, :, first:next_])


@each_kind
@pytest.mark.parametrize("groups", [(4,), (1, 3), (3, 1), (2, 1, 1), (1, 1, 1, 1)])
@torch.no_grad()
def test_streams_give_what_the_whole_does(options, groups):
    model = tokenizer(awake=True, **options)
    model.mean.value.normal_()
    pixels, z = clips(size=options["clip_size"]), torch.randn(2, 4, *model.latent_size)
    ends = [0, *(first_frame(model, group) for group in accumulate(groups))]
    frames = [end - begin for begin, end in pairwise(ends)]
    latents = list(model.encode_stream(pixels.split(frames, dim=2)))
    assert [chunk.shape[2] for chunk in latents] == list(groups)
    assert torch.allclose(torch.cat(latents, dim=2), model.encode(pixels), atol=1e-5)
    decoded = list(model.decode_stream(z.split(groups, dim=2)))
    assert [chunk.shape[2] for chunk in decoded] == frames
    assert torch.allclose(torch.cat(decoded, dim=2), model.decode(z), atol=1e-5)


@torch.no_grad()
def test_a_stream_asks_for_a_chunk_at_a_time():
    model, taken = tokenizer(), []

    def chunks() -> Iterator[torch.Tensor]:
        for number in range(3):
            taken.append(number)
            yield clips(size=(2, 16, 16))

    for stream in (
        model.encode_stream(chunks()),
        model.decode_stream(model.encode_stream(chunks())),
    ):
        taken.clear()
        next(stream)
        assert taken == [0]


@torch.no_grad()
def test_streams_of_two_videos_do_not_meet():
    model = tokenizer(awake=True)
    halves = [clip[None].split(4, dim=2) for clip in clips(2)]
    alone = [torch.cat(list(model.encode_stream(chunks)), dim=2) for chunks in halves]
    first, second = (model.encode_stream(chunks) for chunks in halves)
    turns = [(next(first), next(second)) for _ in range(2)]
    for video, other in zip(alone, zip(*turns, strict=True), strict=True):
        assert torch.equal(video, torch.cat(other, dim=2))


# ---- moments ----------------------------------------------------------------------------------


@torch.no_grad()
def test_what_is_observed_standardises_the_latent():
    model = tokenizer(awake=True)
    seen = list(torch.rand(3, 2, 3, 8, 16, 16) * 2 - 1)
    for pixels in seen:
        raw = model.posterior(pixels).mean
        split = model.codec.split(model.standardise(raw))
        model.observe(model.measure(raw) | model.codec.measure(split, raw.shape[2:]))
    z = torch.cat([model.encode(pixels) for pixels in seen])
    assert z.mean((0, 2, 3, 4)).abs().max() < 1e-4
    assert (z.var((0, 2, 3, 4), correction=0) - 1).abs().max() < 1e-3
    assert model.mean.count == model.codec.variance.count == model.codec.usage.count == 3


@torch.no_grad()
def test_decoding_undoes_standardisation():
    model, pixels = tokenizer(awake=True), clips()
    raw = model.decoder(model.posterior(pixels).mean)
    observed(model, pixels)
    assert model.mean.value.abs().min() > 1e-3
    assert torch.allclose(model.reconstruct(model.encode(pixels)), raw, atol=1e-5)


@torch.no_grad()
def test_a_dead_latent_channel_stays_finite():
    model, pixels = tokenizer(), clips()
    model.encoder.shortcut.weight[1] = 0
    observed(model, pixels)
    z = model.encode(pixels)
    assert z.isfinite().all()
    assert model.decode(z).isfinite().all()
    assert model.codec.merge(model.codec.split(z).codes).isfinite().all()


@torch.no_grad()
def test_decoded_pixels_stay_in_range():
    decoded = tokenizer(awake=True).decode(100 * torch.randn(1, 4, 4, 4, 4))
    assert decoded.min() == -1
    assert decoded.max() == 1


@torch.no_grad()
def test_in_half_precision_latents_and_pixels_are_whole():
    model, pixels = observed(tokenizer(awake=True), clips()), clips()
    z = model.encode(pixels)
    model.bfloat16()
    assert model.mean.value.dtype == torch.float32
    half = model.encode(pixels)
    assert half.dtype == model.decode(half).dtype == torch.float32
    assert torch.allclose(half, z, atol=0.2)


# ---- training ---------------------------------------------------------------------------------


def batch_of(pixels):
    B = len(pixels)
    return VideoBatch(
        pixels=pixels,
        fps=torch.full((B,), 8.0),
        captions=("",) * B,
        positions=torch.arange(B),
        keys=tuple(str(i) for i in range(B)),
    )


def example_of(stage, pixels, seed=0):
    draws = Draws(seed, range(len(pixels)), torch.device("cpu"))
    return stage.example(batch_of(pixels), draws)


@torch.no_grad()
def test_the_shares_of_clips_decoded_from_less_than_the_latent():
    """Of 64 clips alike, half from a prefix, a quarter from all codes, a quarter from z."""
    stage = TokenizerStage(tokenizer=tokenizer(awake=True), coded_share=0.25, prefix_share=0.5)
    model, pixels = stage.tokenizer, clips(1)
    example = example_of(stage, pixels.expand(64, -1, -1, -1, -1).contiguous())
    quiet = replace(example, noise=torch.zeros_like(example.noise))
    prediction = stage(quiet)
    z = model.encode(pixels)
    states = model.codec.pyramid(model.codec.split(z).states, z.shape[2:]).levels
    assert len(prediction.coarse) == len(states) - 1 == 2
    seen = torch.cat([model.reconstruct(state) for state in (*states, z)])
    distances = (prediction.pixels.guess[:, None] - seen).flatten(2).abs().amax(2)
    assert (distances.amin(1) < 1e-4).all()
    shares = torch.bincount(distances.argmin(1), minlength=4) / 64
    assert torch.allclose(shares, torch.full((4,), 0.25), atol=0.13)
    assert torch.equal(
        distances.argmin(1) < 2, example.choice < 0.5
    )  # a prefix, where the draw says so


@pytest.mark.parametrize(
    ("coded", "prefix", "state"), [(0.0, 0.0, "z"), (1.0, 0.0, "coded"), (0.0, 1.0, "prefix")]
)
@torch.no_grad()
def test_one_kind_of_clip_alone(coded, prefix, state):
    stage = TokenizerStage(tokenizer=tokenizer(awake=True), coded_share=coded, prefix_share=prefix)
    model, pixels = stage.tokenizer, clips(2)
    quiet = replace(example_of(stage, pixels), noise=torch.zeros(2, 4, 4, 4, 4))
    guess = stage(quiet).pixels.guess
    z = model.encode(pixels)
    whole = model.reconstruct(z)
    from_codes = model.reconstruct(model.codec.merge(model.codec.split(z).codes))
    assert torch.allclose(guess, whole, atol=1e-5) == (state == "z")
    assert torch.allclose(guess, from_codes, atol=1e-5) == (state == "coded")


@pytest.mark.parametrize(("coded", "prefix"), [(-0.1, 0.1), (0.1, -0.1), (0.6, 0.5)])
def test_shares_that_are_none_are_refused(coded, prefix):
    with pytest.raises(ValueError, match=f"coded_share={coded} and prefix_share={prefix}"):
        TokenizerStage(tokenizer=tokenizer(), coded_share=coded, prefix_share=prefix)


def test_a_clip_that_is_not_whole_is_refused():
    with pytest.raises(ValueError, match="not whole in strides"):
        example_of(TokenizerStage(tokenizer=tokenizer()), clips(size=(7, 16, 16)))


@pytest.mark.parametrize(
    ("coded", "prefix", "taught"), [(0.0, 0.0, True), (1.0, 0.0, True), (0.0, 1.0, False)]
)
def test_pixels_teach_the_encoder_from_the_latent_and_all_codes_but_no_prefix(
    coded, prefix, taught
):
    model = observed(tokenizer(awake=True), clips())
    stage = TokenizerStage(tokenizer=model, coded_share=coded, prefix_share=prefix)
    stage(example_of(stage, clips())).pixels.guess.square().sum().backward()
    encoder = [parameter.grad for parameter in model.encoder.parameters()]
    assert all(gradient is not None and gradient.any() for gradient in encoder) == taught
    assert any(gradient is not None and gradient.any() for gradient in encoder) == taught
    assert all(parameter.grad.any() for parameter in model.decoder.parameters())
    assert all(parameter.grad is None for parameter in model.codec.parameters())


def test_quantisation_is_passed_straight_through():
    """The encoder's gradient is that of the decoder at z_hat_K, as if z were there."""
    model = observed(tokenizer(awake=True), clips())
    stage = TokenizerStage(tokenizer=model, coded_share=1.0, prefix_share=0.0)
    example = example_of(stage, clips())
    prediction = stage(example)
    prediction.pixels.guess.square().sum().backward()
    got = [parameter.grad.clone() for parameter in model.encoder.parameters()]
    model.zero_grad()
    coded = prediction.commitment.target.clone().requires_grad_()
    model.reconstruct(coded).square().sum().backward()
    model.zero_grad()
    stage(example).commitment.guess.backward(coded.grad)
    for gradient, parameter in zip(got, model.encoder.parameters(), strict=True):
        assert torch.allclose(gradient, parameter.grad, rtol=1e-3, atol=1e-4)


def test_the_other_pairs_teach_what_they_should():
    model = observed(tokenizer(awake=True), clips())
    stage = TokenizerStage(tokenizer=model)
    prediction = stage(example_of(stage, clips()))
    sum(pair.guess.square().sum() for pair in prediction.coarse).backward(retain_graph=True)
    assert all(parameter.grad.any() for parameter in model.codec.parameters())
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert not any(
        pair.target.requires_grad for pair in (*prediction.coarse, prediction.commitment)
    )
    prediction.commitment.guess.square().sum().backward()
    assert all(parameter.grad.any() for parameter in model.encoder.parameters())
    assert all(parameter.grad is None for parameter in model.decoder.parameters())


@pytest.mark.parametrize("options", [{}, {"time_mode": "1+n", "clip_size": (7, 16, 16)}])
def test_every_parameter_takes_part_from_the_first_step(options):
    """A parameter without a gradient, be it zero, would stop a sharded optimiser."""
    stage = TokenizerStage(tokenizer=tokenizer(**options))
    pixels = clips(size=options.get("clip_size", (8, 16, 16)))
    OBJECTIVE(stage(example_of(stage, pixels)), batch_of(pixels))[0].backward()
    assert [name for name, parameter in stage.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
def test_an_image_is_a_clip():
    stage = TokenizerStage(tokenizer=tokenizer((5, 16, 16), time_mode="1+n", awake=True))
    before = stage.tokenizer.codec.variance.value.clone()
    prediction = stage(example_of(stage, clips(size=(1, 16, 16))))
    assert prediction.pixels.guess.shape == (2, 3, 1, 16, 16)
    stage.observe(prediction.statistics)
    after = stage.tokenizer.codec.variance.value
    assert (after != before).any(1).tolist() == [True] * 3 + [False] * 3


@torch.no_grad()
def test_statistics_are_the_means_of_their_clips():
    """Those of a batch are the mean of those of its halves: any number of workers sees the same."""
    stage = TokenizerStage(tokenizer=tokenizer(awake=True))
    example = example_of(stage, clips(4))
    names = ("pixels", "noise", "choice")
    halves = [
        replace(example, **{name: getattr(example, name)[rows] for name in names})
        for rows in (slice(0, 2), slice(2, 4))
    ]
    whole, first, second = (stage(part).statistics for part in (example, *halves))
    assert set(whole) == {"latent/mean", "latent/square", "codec/variance", "codec/usage"}
    for name, value in whole.items():
        assert torch.allclose(value, (first[name] + second[name]) / 2, atol=1e-5)


@torch.no_grad()
def test_observing_tells_how_evenly_the_codes_are_used():
    stage = TokenizerStage(tokenizer=tokenizer(awake=True))
    prediction = stage(example_of(stage, clips(4)))
    told = stage.observe(prediction.statistics)
    assert list(told) == ["codes/entropy_0_1x1x1", "codes/entropy_1_2x2x2", "codes/entropy_2_4x4x4"]
    assert all(0 <= value <= 1 for value in told.values())
    assert stage.tokenizer.mean.count == 1
    assert torch.equal(stage.tokenizer.mean.value, prediction.statistics["latent/mean"])


@torch.no_grad()
def test_training_starts_at_rest():
    """Pixels through two linear maps, little noise, and scales that repeat what they say."""
    model = tokenizer()
    posterior = model.posterior(clips())
    assert torch.equal(posterior.logvar, torch.full((2, 4, 4, 4, 4), -6.0))
    assert all(not parameter.any() for parameter in model.codec.parameters())
    doubled = model.posterior(2 * clips()).mean
    nothing = model.posterior(torch.zeros_like(clips())).mean
    assert torch.allclose(doubled - nothing, 2 * (posterior.mean - nothing), atol=1e-5)


def test_it_overfits_four_clips():
    size = (4, 16, 16)
    model = tokenizer(size, channels=8, base=8, strides=(2, 4, 4))
    stage = TokenizerStage(tokenizer=model, coded_share=0.25, prefix_share=0.0)
    batch, steps = batch_of(clips(4, size)), 200
    optimizer = torch.optim.Adam(stage.parameters(), lr=1e-2)
    for step in range(steps):
        draws = Draws(0, range(4 * step, 4 * step + 4), torch.device("cpu"))
        prediction = stage(stage.example(batch, draws))
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        optimizer.zero_grad()
        OBJECTIVE(prediction, batch)[0].backward()
        optimizer.step()
        stage.observe(prediction.statistics)
    with torch.no_grad():
        z = model.encode(batch.pixels)
        coded = model.codec.merge(model.codec.split(z).codes)
        whole, from_codes = (
            psnr(replace(prediction, pixels=replace(prediction.pixels, guess=model.decode(x))))
            for x in (z, coded)
        )
    assert (whole > 30).all(), whole
    assert 20 < from_codes.mean() < whole.mean(), from_codes
