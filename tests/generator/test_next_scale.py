from dataclasses import replace

import pytest
import torch

from hstvg.generator.blocks import blocks_of
from hstvg.generator.generator import Sampling
from hstvg.generator.next_scale import NextScaleGenerator, guidance_at
from hstvg.generator.told import read_prompts
from hstvg.objective.next_scale import NextScaleTerm
from hstvg.paths.draws import Draws
from hstvg.scales import ScaleSchedule, pool
from hstvg.scene.text import TextEncoder
from hstvg.tokenizer.codec import ScaleCodec
from hstvg.tokenizer.quantiser import BSQ, FSQ
from hstvg.types import Condition, LatentBatch

CPU = torch.device("cpu")
SIZE = (4, 4, 4)
SCHEDULES = {
    "cubic": ScaleSchedule.of_kind("cubic", SIZE),
    "space": ScaleSchedule.of_kind("space", SIZE),
    "frames": ScaleSchedule.of_kind("frames", SIZE),
    "first alone": ScaleSchedule.of_kind("cubic", (5, 4, 4), first_alone=True),
}
CAPTIONS = ("a red circle moves right", "a blue square")


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def codec_of(schedule, quantiser=None):
    torch.manual_seed(0)
    codec = ScaleCodec(3, schedule, quantiser or FSQ()).requires_grad_(False)
    for upsampler in codec.upsamplers:
        if upsampler.detail is not None:
            torch.nn.init.normal_(upsampler.detail.weight, std=0.05)
    z = noise(8, 3, *schedule.size, seed=9)
    codec.observe(codec.measure(codec.split(z), z.shape[2:]))
    return codec


def generator_of(codec, awake=True, **options):
    torch.manual_seed(0)
    text = TextEncoder(width=16, layers=1, heads=2)
    generator = NextScaleGenerator(
        codec=codec, text=text, width=32, depth=2, head_dim=16, **{"head_depth": 1, **options}
    )
    for weight in generator.transformer.parameters() if awake else ():
        torch.nn.init.normal_(weight, std=0.15)
    for weight in generator.head.parameters() if awake else ():
        torch.nn.init.normal_(weight, std=0.3)
    return generator.eval()


def batch_of(codec, seed=1):
    return LatentBatch(
        latent=noise(2, 3, *codec.schedule.size, seed=seed),
        captions=CAPTIONS,
        positions=torch.arange(2),
        keys=("a", "b"),
    )


PLAIN = {"text_dropout": 0.0, "corruption": 0.0, "context_share": 0.0}


def example_of(generator, codec, seed=0, batch=None):
    return generator.example(batch or batch_of(codec), codec, Draws(seed, [0, 1], CPU))


@pytest.fixture(params=SCHEDULES)
def codec(request):
    return codec_of(SCHEDULES[request.param])


def test_it_begins_by_guessing_all_codes_alike(codec):
    generator = generator_of(codec, awake=False)
    loss = NextScaleTerm()(generator(example_of(generator, codec)), batch_of(codec))
    assert torch.allclose(loss, torch.full((2,), 5.0).log(), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("quantiser", [FSQ(3), BSQ()])
def test_no_scale_sees_itself_or_a_finer_one(codec, quantiser):
    codec = codec_of(codec.schedule, quantiser)
    generator = generator_of(codec, **PLAIN)
    before = generator(example_of(generator, codec)).codes
    last = len(before) - 1
    for changed in range(last + 1):

        def other(codes, number, changed=changed):
            return (codes + 1) % codec.levels if number == changed else codes

        generator._corrupt = lambda *_, other=other: other
        after = generator(example_of(generator, codec)).codes
        for number in range(last + 1):
            same = torch.equal(before[number].logits, after[number].logits)
            assert same == (number <= changed)


@torch.no_grad()
def test_targets_after_an_error_correct_it(codec):
    """Each later rung's codes are those of the residual that the corrupted ones leave."""
    generator = generator_of(codec, text_dropout=0.0, corruption=0.9, context_share=0.0)
    batch = batch_of(codec)
    example = example_of(generator, codec, batch=batch)
    clean = codec.split(batch.latent)
    wrong = 0
    rungs = [block for block in example.blocks if block.rung]
    inputs = [x for x, block in zip(example.inputs, example.blocks, strict=True) if block.rung]
    for number, block in enumerate(rungs):
        rung = block.rung
        if rung.depth == 0:
            continue
        # What goes in is the pooled state; the state is constant only where there is no detail, so
        # the target is worked out from the pooled residual: D_k z - D_k z_hat.
        asked = pool(batch.latent[:, :, rung.frames], rung.scale) - inputs[number]
        assert torch.equal(example.targets[number], codec.encode(asked, rung))
        wrong += (example.targets[number] != clean.codes[number]).float().mean()
    assert wrong > 0.1


def test_the_last_rung_is_never_corrupted(codec):
    generator = generator_of(codec, corruption=0.9)
    last = len(codec.schedule.rungs) - 1
    corrupt = generator._corrupt(Draws(0, [0, 1], CPU), codec, codec.schedule.rungs)
    codes = torch.zeros(2, 3, 4, 4, 4, dtype=torch.long)
    assert torch.equal(corrupt(codes, last), codes)
    assert not torch.equal(corrupt(codes, 0), codes)


@torch.no_grad()
def test_sampling_with_memories_is_sampling_without(codec):
    generator = generator_of(codec, **PLAIN)
    settings = Sampling(guidance=1, temperature=0)
    z = generator.sample(CAPTIONS, codec, Draws(3, [0, 1], CPU), settings).finest
    assert torch.allclose(z, merge_greedily(generator, codec), atol=1e-4)


def merge_greedily(generator, codec):
    """The likeliest codes without memories: for every rung a whole pass over all blocks so far."""
    condition, _ = read_prompts(CAPTIONS, generator.text, CPU)
    blocks = blocks_of(codec.schedule, 0)
    z = torch.zeros(2, 3, *codec.schedule.size)
    inputs = []
    for i, block in enumerate(blocks):
        frames = slice(block.start, block.start + block.span)
        inputs.append(z[:, :, frames] if block.rung is None else pool(z[:, :, frames], block.size))
        if block.rung is None:
            continue
        states = generator.transformer(blocks[: i + 1], inputs, [None] * (i + 1), condition)[-1]
        codes = generator.head(states).argmax(-1).unflatten(-1, block.size)
        residual = codec.decode(codes, block.rung)
        z[:, :, frames] = codec.grow(z[:, :, frames].clone(), residual, block.rung)
    return z


@torch.no_grad()
def test_guidance_of_1_is_the_conditional_model_and_more_is_not(codec):
    generator = generator_of(codec, **PLAIN)

    def sample(guidance):
        settings = Sampling(guidance=guidance, temperature=0)
        return generator.sample(CAPTIONS, codec, Draws(3, [0, 1], CPU), settings).finest

    almost, plain, strong = sample(1 + 1e-6), sample(1), sample(6)
    assert torch.allclose(plain, almost, atol=1e-4)
    assert not torch.allclose(plain, strong, atol=1e-2)


def test_guidance_rises_with_the_scale():
    weights = [guidance_at(k, 4, 3.0) for k in range(4)]
    assert weights == [1.5, 2.0, 2.5, 3.0]
    assert guidance_at(0, 4, 1.0) == 1.0


@torch.no_grad()
def test_a_sample_belongs_to_its_prompt_and_position(codec):
    generator = generator_of(codec, **PLAIN)
    settings = Sampling(guidance=2)
    both = generator.sample(CAPTIONS, codec, Draws(3, [4, 5], CPU), settings).finest
    one = generator.sample(CAPTIONS[1:], codec, Draws(3, [5], CPU), settings).finest
    assert torch.allclose(both[1:], one, atol=1e-4)


@torch.no_grad()
def test_levels_are_the_states_on_the_way(codec):
    generator = generator_of(codec, **PLAIN)
    levels = generator.sample(CAPTIONS, codec, Draws(0, [0, 1], CPU), Sampling()).levels
    assert generator.kappas == (len(levels),) == (codec.schedule.num_levels,)
    assert all(level.shape == (2, 3, *codec.schedule.size) for level in levels)


@torch.no_grad()
def test_given_segments_stay_as_they_are_coded():
    codec = codec_of(SCHEDULES["frames"])
    generator = generator_of(codec, **PLAIN)
    given = noise(2, 3, 2, 4, 4)
    z = generator.sample(CAPTIONS, codec, Draws(0, [0, 1], CPU), Sampling(), given).finest
    coded = codec.pyramid(codec.split(given).states, given.shape[2:]).finest
    assert torch.allclose(z[:, :, :2], coded, atol=1e-5)


@torch.no_grad()
def test_given_frames_are_read():
    codec = codec_of(SCHEDULES["cubic"])
    generator = generator_of(codec, **PLAIN)

    def sample(given):
        settings = Sampling(guidance=1, temperature=0)
        return generator.sample(CAPTIONS, codec, Draws(0, [0, 1], CPU), settings, given).finest

    free, one, other = sample(None), sample(noise(2, 3, 1, 4, 4)), sample(-noise(2, 3, 1, 4, 4))
    assert not torch.equal(free, one)
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match="2 latent frames are given"):
        sample(noise(2, 3, 2, 4, 4))


@torch.no_grad()
def test_frames_a_clip_is_not_given_change_nothing():
    codec = codec_of(SCHEDULES["cubic"])
    generator = generator_of(codec, **{**PLAIN, "context_share": 0.5})
    draws = Draws(0, list(range(2)), CPU)
    example = generator.example(batch_of(codec), codec, draws)
    (present,) = [there for there in example.present if there is not None]
    masks = {seed: example_of(generator, codec, seed).present[0].any().item() for seed in range(20)}
    assert set(masks.values()) == {True, False}
    absent = torch.zeros_like(present)
    first = generator(replace(example, present=(absent, *example.present[1:]))).codes
    inputs = (torch.randn_like(example.inputs[0]), *example.inputs[1:])
    second = generator(
        replace(example, present=(absent, *example.present[1:]), inputs=inputs)
    ).codes
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.logits, b.logits)


@pytest.mark.parametrize("head", ["codes", "flow"])
def test_every_weight_takes_part_in_every_step(codec, head):
    """Else ZeRO 3 and DistributedDataParallel would wait for gradients that never come."""
    generator = generator_of(codec, head=head).train()
    prediction = generator(example_of(generator, codec))
    NextScaleTerm()(prediction, batch_of(codec)).mean().backward()
    without = [name for name, weight in generator.named_parameters() if weight.grad is None]
    # A schedule of several segments has given frames only where a segment is finished.
    assert not without


@pytest.mark.parametrize("quantiser", [FSQ(), BSQ()])
def test_it_learns_a_batch_by_heart(codec, quantiser):
    codec = codec_of(codec.schedule, quantiser)
    generator = generator_of(codec, awake=False, **PLAIN).train()
    example = example_of(generator, codec)
    optimizer = torch.optim.Adam(generator.parameters(), lr=5e-3)
    for _ in range(120):
        prediction = generator(example)
        NextScaleTerm()(prediction, batch_of(codec)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    right = torch.cat([(p.logits.argmax(-1) == p.codes).flatten() for p in prediction.codes])
    assert right.float().mean() >= 0.99
    generator.eval()
    settings = Sampling(guidance=1, temperature=0)
    z = generator.sample(CAPTIONS, codec, Draws(0, [0, 1], CPU), settings).finest
    split = codec.split(batch_of(codec).latent)
    coded = codec.pyramid(split.states, z.shape[2:]).finest
    assert ((z - coded).abs() < 1e-3).float().mean() > 0.95


def test_the_flow_head_learns_values_by_heart():
    codec = codec_of(SCHEDULES["cubic"])
    generator = generator_of(codec, awake=False, head="flow", **PLAIN).train()
    optimizer = torch.optim.Adam(generator.parameters(), lr=5e-3)
    for step in range(250):
        prediction = generator(example_of(generator, codec, seed=step))
        loss = NextScaleTerm()(prediction, batch_of(codec)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    generator.eval()
    settings = Sampling(guidance=1, steps=12)
    z = generator.sample(CAPTIONS, codec, Draws(5, [0, 1], CPU), settings).finest
    truth = batch_of(codec).latent
    assert (z - truth).square().mean() < 0.2 * truth.square().mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruption": 1.0}, "below 1"),
        ({"context_frames": 4}, "something to write"),
    ],
)
def test_what_it_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        generator_of(codec_of(SCHEDULES["cubic"]), **options)


def test_clips_of_another_size_are_trained_on():
    codec = codec_of(SCHEDULES["cubic"])
    generator = generator_of(codec)
    batch = LatentBatch(
        latent=noise(2, 3, 4, 4, 8), captions=CAPTIONS, positions=torch.arange(2), keys=("", "")
    )
    codes = generator(example_of(generator, codec, batch=batch)).codes
    assert [pair.codes.shape[2] for pair in codes] == [2, 16, 128]


def test_a_clip_that_its_beginning_would_fill_is_given_none():
    """Else the answer would be among what is read."""
    codec = codec_of(SCHEDULES["first alone"])
    generator = generator_of(codec, **{**PLAIN, "context_share": 1.0})
    image = LatentBatch(
        latent=noise(2, 3, 1, 4, 4), captions=CAPTIONS, positions=torch.arange(2), keys=("", "")
    )
    example = example_of(generator, codec, batch=image)
    assert all(block.rung is not None for block in example.blocks)


def test_no_segment_ends_with_an_error_that_none_could_correct():
    codec = codec_of(SCHEDULES["first alone"])
    generator = generator_of(codec, corruption=0.9)
    rungs = codec.schedule.rungs
    corrupt = generator._corrupt(Draws(0, [0, 1], CPU), codec, rungs)
    codes = torch.zeros(2, 3, 4, 4, 4, dtype=torch.long)
    ends = [
        number for number, rung in enumerate(rungs) if torch.equal(corrupt(codes, number), codes)
    ]
    assert ends == [
        number
        for number, rung in enumerate(rungs)
        if rung.depth + 1 == len(codec.schedule[rung.segment])
    ]


def test_captions_encoded_before_take_the_precision_of_the_weights():
    codec = codec_of(SCHEDULES["cubic"])
    generator = generator_of(codec, **PLAIN).bfloat16()
    known = Condition(text=noise(2, 5, 16), text_mask=torch.ones(2, 5, dtype=torch.bool))
    generator.no_text = noise(1, 16)
    example = generator.example(batch_of(codec), codec, Draws(0, [0, 1], CPU), known)
    assert generator(example).codes[0].logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 1.5}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.* out of its range"):
        Sampling(**wrong)


@pytest.mark.parametrize("motion", [{"motion_noise": 0.5}, {"motion_guidance": 1.0}])
def test_what_only_a_denoiser_does_is_refused(motion):
    codec = codec_of(SCHEDULES["cubic"])
    with pytest.raises(ValueError, match="are for a denoiser"):
        generator_of(codec).sample(CAPTIONS, codec, Draws(0, [0, 1], CPU), Sampling(**motion))
