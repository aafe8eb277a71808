"""Videos of several blocks by a generator that remembers those before."""

import numpy as np
import pytest
import torch
from test_bundle import CONFIG, JOINT, PROMPTS, awake_model

from hstvg.generate.bundle import load_model, save_model
from hstvg.generate.workflow import to_frames, write_clips
from hstvg.generator.generator import Sampling

HISTORY = {
    "_target_": "hstvg.generator.history.History",
    "blocks": 2,
    "tail": 1,
    "page": 2,
    "window": 1,
    "noise": 0.1,
}
PAGED = {"kinds": ["local", "paged"]}
REMEMBERS = CONFIG["generator"] | PAGED | {"history": HISTORY}
SETTINGS = Sampling(steps=2, guidance=2.0)
IMAGE_FIRST = {"clip_size": [7, 16, 16], "time_mode": "1+n", "schedule": "space"}


def model_of(generator=REMEMBERS, window=8, **tokenizer):
    config = CONFIG | {"generator": generator, "tokenizer": CONFIG["tokenizer"] | tokenizer}
    config["window"] = config["window"] | {"num_frames": window}
    return awake_model(config)


def write(model, num_frames=None, prompts=PROMPTS, seed=0, **options):
    return write_clips(
        model, prompts, seed=seed, settings=SETTINGS, num_frames=num_frames, **options
    )


def blocks_of(model, monkeypatch, num_frames):
    """A video and the latents of its blocks."""
    seen = []
    decode = model.tokenizer.decode_stream
    monkeypatch.setattr(
        model.tokenizer, "decode_stream", lambda chunks: decode(seen.extend(chunks) or seen)
    )
    return write(model, num_frames), seen


def near(one, other):
    """Sums in another order may round a value across the border of two bytes."""
    return one.shape == other.shape and np.abs(one.astype(int) - other).max() <= 1


@pytest.mark.parametrize(
    ("settings", "block"), [({}, 8), (IMAGE_FIRST, 7)], ids=["groups", "image first"]
)
def test_three_blocks_are_decoded_as_one_video(settings, block, monkeypatch):
    model = model_of(window=block, **settings)
    frames = 20
    written, blocks = blocks_of(model, monkeypatch, frames)
    assert written.shape == (2, frames, 16, 16, 3)
    assert [z.shape[2] for z in blocks] == [4] * 3
    whole = model.tokenizer.decode(torch.cat(blocks, dim=2))
    assert near(written, to_frames(whole)[:, :frames])
    assert near(written[:, :block], write(model))
    apart = torch.cat([model.tokenizer.decode(z) for z in blocks], dim=2)
    assert not near(written, to_frames(apart)[:, :frames])


def test_a_video_is_the_same_in_any_batch():
    model = model_of()
    written = write(model, 24)
    assert np.array_equal(written, write(model, 24))
    assert near(write(model, 24, PROMPTS[1:], first=1)[0], written[1])
    assert not near(write(model, 24, seed=1), written)
    assert near(write(model, 17), written[:, :17])


def test_a_remembering_generator_begins_with_given_frames():
    model = model_of(REMEMBERS | {"context_frames": 1})
    given = write(model)[:, :3]
    on = write(model, 20, given=given)
    assert on.shape == (2, 20, 16, 16, 3)
    assert np.array_equal(on[:, :3], given)
    assert np.array_equal(write(model, 2, given=given), given[:, :2])
    with pytest.raises(ValueError, match="cannot go on from frames"):
        write(model_of(), 20, given=given)


GIVEN = CONFIG["generator"] | {"context_frames": 1}


@pytest.mark.parametrize("generator", [REMEMBERS, GIVEN], ids=["remembers", "is given frames"])
def test_noise_moves_on_from_block_to_block(generator, monkeypatch):
    noise = {"_target_": "hstvg.paths.motion_noise.MotionNoise", "seconds": 0.25}
    model = model_of(generator | {"noise": noise})
    assert model.generator is not None
    told, left, make = [], [], model.generator.sample

    def watch(*asked):
        made = make(*asked)
        told.append(asked[-1].particles)
        left.append(made.particles)
        return made

    monkeypatch.setattr(model.generator, "sample", watch)
    settings = Sampling(steps=2, guidance=2.0, motion_noise=0.5)
    write_clips(model, PROMPTS, seed=0, settings=settings, num_frames=20)
    assert len(told) == 3
    assert told[0] is None
    assert all(one is other for one, other in zip(told[1:], left, strict=False))
    frames = [particles.frame for particles in left]
    assert frames == sorted(set(frames))


def test_a_bundle_keeps_its_memory(tmp_path):
    config = CONFIG | {"generator": REMEMBERS}
    model = awake_model(config)
    parts = {"tokenizer": model.tokenizer, "generator": model.generator}
    weights = {
        f"{name}.{key}": value.clone()
        for name, module in parts.items()
        for key, value in module.state_dict().items()
    }
    save_model(tmp_path, config, weights, "# A model\n")
    assert near(write(load_model(tmp_path), 16), write(model, 16))


def test_of_both_generators_the_denoiser_alone_remembers():
    model = model_of(
        JOINT | {"denoiser": JOINT["denoiser"] | PAGED, "history": HISTORY, "kappa": 0}
    )
    assert write(model, 16).shape == (2, 16, 16, 16, 3)
    told = Sampling(steps=1, kappa=1)
    with pytest.raises(ValueError, match="kappa=1: the transformer remembers no blocks"):
        write_clips(model, PROMPTS, seed=0, settings=told, num_frames=16)
    assert write_clips(model, PROMPTS, seed=0, settings=told).shape == (2, 8, 16, 16, 3)
