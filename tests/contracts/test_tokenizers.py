"""Every tokenizer keeps the contract of ScaleTokenizer. A new one joins ALL_TOKENIZERS."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tiny_vaes import VAES, save_vae
from torch import Tensor

from hstvg.generate.bundle import assemble, load_model, save_model
from hstvg.objective.codec import CodecTerm
from hstvg.objective.objective import Objective, WeightedTerm
from hstvg.objective.reconstruction import ReconstructionTerm
from hstvg.paths.draws import Draws
from hstvg.scales import pool
from hstvg.tokenizer.scale_tokenizer import ScaleTokenizer
from hstvg.train.tokenizer_stage import TokenizerStage
from hstvg.types import Tokenizer, VideoBatch

OURS = "hstvg.tokenizer.video_tokenizer.VideoTokenizer"
PRETRAINED = "hstvg.tokenizer.pretrained.PretrainedTokenizer"


class Case(NamedTuple):
    node: dict[str, Any]
    vae: str | None = None
    """In VAES, of a pretrained one."""

    @property
    def clip(self) -> tuple[int, int, int]:
        return self.node["clip_size"]


def ours(clip: tuple[int, int, int], **settings: Any) -> Case:
    sizes = {"channels": 4, "base": 8, "depth": 1}
    return Case({"_target_": OURS, "clip_size": clip, **sizes, **settings})


ALL_TOKENIZERS = {
    "n": ours((8, 16, 16)),
    "1+n": ours((9, 16, 16), time_mode="1+n", haar=True, schedule="frames"),
    **{name: Case({"_target_": PRETRAINED, "clip_size": (17, 16, 16)}, vae=name) for name in VAES},
}

each_tokenizer = pytest.mark.parametrize("case", ALL_TOKENIZERS.values(), ids=list(ALL_TOKENIZERS))

Make = Callable[[Case], ScaleTokenizer]


@pytest.fixture(scope="module")
def node_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], dict[str, Any]]:
    folders: dict[str, Path] = {}

    def node(case: Case) -> dict[str, Any]:
        if case.vae is None:
            return case.node
        if case.vae not in folders:
            folders[case.vae] = tmp_path_factory.mktemp("vae") / case.vae
            save_vae(VAES[case.vae], folders[case.vae])
        return {**case.node, "pretrained": str(folders[case.vae])}

    return node


@pytest.fixture(scope="module")
def make(node_of: Callable[[Case], dict[str, Any]]) -> Make:
    """Builds the tokenizer of a case, with detail guesses as if trained; nothing is silent."""

    def made(case: Case) -> ScaleTokenizer:
        torch.manual_seed(0)
        tokenizer = assemble(node_of(case))
        with torch.no_grad():
            for weight in tokenizer.parameters():
                if weight.requires_grad:
                    weight.add_(0.1 * torch.randn_like(weight))
        return tokenizer

    return made


def pixels_of(case: Case, count: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, *case.clip, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def long_video(tokenizer: ScaleTokenizer, case: Case, groups: int) -> Tensor:
    """One video of so many groups of frames, the smallest that this tokenizer takes."""
    frames = groups * tokenizer.frames + tokenizer.first_alone
    return pixels_of(Case({"clip_size": (frames, *case.clip[1:])}), count=1)


@each_tokenizer
def test_shapes_there_and_back(make, case):
    tokenizer = make(case)
    assert isinstance(tokenizer, Tokenizer)
    pixels = pixels_of(case)
    size = tokenizer.size_of(case.clip)
    assert tokenizer.latent_size == tokenizer.schedule.size == size
    shape = (2, tokenizer.channels, *size)
    with torch.no_grad():
        posterior = tokenizer.posterior(pixels)
        z = tokenizer.encode(pixels)
        assert posterior.mean.shape == posterior.logvar.shape == z.shape == shape
        decoded = tokenizer.decode(z)
    assert decoded.shape == pixels.shape
    assert decoded.abs().max() <= 1
    assert {z.dtype, decoded.dtype, tokenizer.reconstruct(z).dtype} == {torch.float32}


@each_tokenizer
def test_a_clip_that_is_not_whole_is_refused(make, case):
    tokenizer = make(case)
    T, H, W = case.clip
    for clip in [(T + 1, H, W), (T, H + 1, W), (T, H, W + 1), (0, H, W)]:
        with pytest.raises(ValueError, match="not whole in strides"):
            tokenizer.size_of(clip)


@each_tokenizer
@torch.no_grad()
def test_an_image_is_a_clip_where_the_first_frame_is_alone(make, case):
    tokenizer = make(case)
    if not tokenizer.first_alone:
        with pytest.raises(ValueError, match="not whole in strides"):
            tokenizer.size_of((1, *case.clip[1:]))
        return
    image = pixels_of(case)[:, :, :1]
    z = tokenizer.encode(image)
    assert z.shape[2:] == tokenizer.size_of((1, *case.clip[1:]))
    assert tokenizer.decode(z).shape == image.shape
    assert tokenizer.codec.schedule.resized(z.shape[2:]).rungs[-1].size == z.shape[2:]


@each_tokenizer
@torch.no_grad()
def test_the_latent_is_standardised_by_what_was_observed(make, case):
    tokenizer = make(case)
    batches = [pixels_of(case, seed=seed) for seed in range(3)]
    for pixels in batches:
        raw = tokenizer.posterior(pixels).mean
        split = tokenizer.codec.split(tokenizer.standardise(raw))
        size = raw.shape[2:]
        tokenizer.observe(tokenizer.measure(raw) | tokenizer.codec.measure(split, size))
    z = torch.cat([tokenizer.encode(pixels) for pixels in batches])
    assert z.mean((0, 2, 3, 4)).abs().max() < 1e-3
    assert (z.std((0, 2, 3, 4)) - 1).abs().max() < 1e-2


@each_tokenizer
@torch.no_grad()
def test_decoding_undoes_standardisation(make, case):
    tokenizer, pixels = make(case), pixels_of(case)
    before = tokenizer.decode(tokenizer.encode(pixels))
    tokenizer.mean.value.add_(0.5)
    tokenizer.square.value.mul_(3).add_(2)
    assert torch.allclose(tokenizer.decode(tokenizer.encode(pixels)), before, atol=1e-4)


@each_tokenizer
@torch.no_grad()
def test_the_codec_writes_the_latent_rung_by_rung(make, case):
    tokenizer = make(case)
    codec, z = tokenizer.codec, tokenizer.encode(pixels_of(case))
    assert codec.schedule == tokenizer.schedule
    assert codec.channels == tokenizer.channels
    split = codec.split(z)
    state = z[:, :, :0]
    for rung, residual, after in zip(
        tokenizer.schedule.rungs, split.residuals, split.states, strict=True
    ):
        before = state if rung.depth else torch.zeros_like(after)
        said = pool(before, rung.scale) + residual
        assert torch.allclose(pool(after, rung.scale), said, atol=1e-4)
        state = after
    finest = codec.pyramid(split.states, z.shape[2:]).finest
    assert torch.allclose(codec.merge(split.codes), finest, atol=1e-5)
    exact = codec.pyramid(codec.split(z, quantise=False).states, z.shape[2:]).finest
    assert torch.allclose(exact, z, atol=1e-4)
    assert tokenizer.decode(finest).shape == (2, 3, *case.clip)


def cut(video: Tensor, sizes: list[int]) -> Iterator[Tensor]:
    """Pieces of these numbers of frames, the last of them over and over."""
    sizes = [*sizes, *[sizes[-1]] * (video.shape[2] // sizes[-1])]
    begin = 0
    for size in sizes:
        if begin < video.shape[2]:
            yield video[:, :, begin : begin + size]
        begin += size


@each_tokenizer
@torch.no_grad()
def test_a_stream_gives_what_the_whole_gives(make, case):
    tokenizer = make(case)
    if not tokenizer.streams_exactly:
        pytest.skip("see what holds in tests/tokenizer/test_pretrained.py")
    alone, step = int(tokenizer.first_alone), tokenizer.frames
    video = long_video(tokenizer, case, groups=6)
    z = tokenizer.encode(video)
    decoded = tokenizer.decode(z)
    per_group = step // tokenizer.strides.t
    for groups in (1, 2, 6):
        chunks = cut(video, [alone + groups * step, groups * step])
        assert torch.allclose(torch.cat(list(tokenizer.encode_stream(chunks)), 2), z, atol=1e-5)
        latents = cut(z, [alone + groups * per_group, groups * per_group])
        pieces = list(tokenizer.decode_stream(latents))
        assert torch.allclose(torch.cat(pieces, 2), decoded, atol=1e-5)


@each_tokenizer
@torch.no_grad()
def test_a_stream_begins_before_its_source_ends(make, case):
    tokenizer = make(case)
    video = long_video(tokenizer, case, groups=24)
    given = 0

    def frames() -> Iterator[Tensor]:
        nonlocal given
        for chunk in cut(video, [tokenizer.frames + tokenizer.first_alone, tokenizer.frames]):
            given += chunk.shape[2]
            yield chunk

    stream = tokenizer.decode_stream(tokenizer.encode_stream(frames()))
    assert next(stream).shape[2] > 0
    assert given < video.shape[2]


@each_tokenizer
@torch.no_grad()
def test_a_bundle_alone_gives_the_same_tokenizer(make, node_of, case, tmp_path, monkeypatch):
    tokenizer = make(case)
    tokenizer.mean.value.add_(0.3)
    config = {
        "stage": "tokenizer",
        "step": 1,
        "window": {"num_frames": 8, "fps": 8.0, "height": 16, "width": 16},
        "tokenizer": tokenizer.portable(node_of(case)),
        "generator": None,
    }
    weights = {f"tokenizer.{name}": value for name, value in tokenizer.state_dict().items()}
    save_model(tmp_path, config, weights, "")
    assert "pretrained" not in config["tokenizer"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = load_model(tmp_path).tokenizer
    assert loaded.portable(config["tokenizer"]) == config["tokenizer"]
    assert loaded.schedule == tokenizer.schedule
    pixels = pixels_of(case)
    z = tokenizer.encode(pixels)
    assert torch.equal(loaded.encode(pixels), z)
    assert torch.equal(loaded.decode(z), tokenizer.decode(z))


@each_tokenizer
def test_it_builds_without_memory(node_of, case):
    with torch.device("meta"):
        tokenizer = assemble(node_of(case))
        pixels = torch.empty(2, 3, *case.clip)
        assert tokenizer.decode(tokenizer.encode(pixels)).shape == pixels.shape
    assert {value.device.type for value in tokenizer.state_dict().values()} == {"meta"}


@each_tokenizer
@torch.no_grad()
def test_half_precision_gives_nearly_the_same(make, case):
    tokenizer, pixels = make(case), pixels_of(case)
    z = tokenizer.encode(pixels)
    half = make(case).bfloat16()
    assert half.mean.value.dtype == torch.float32
    coarse = half.encode(pixels)
    assert coarse.dtype == half.decode(coarse).dtype == torch.float32
    assert (coarse - z).square().mean() < 0.01 * z.var()


@each_tokenizer
def test_stage_1_trains_what_is_not_frozen(make, case):
    """And moves nothing else: of a pretrained tokenizer, the codec alone."""
    tokenizer = make(case)
    stage = TokenizerStage(tokenizer=tokenizer).train()
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    trained = {name for name, weight in tokenizer.named_parameters() if weight.requires_grad}
    assert trained
    assert all(name.startswith("codec.") for name in trained) == (case.vae is not None)
    objective = Objective(
        {
            "reconstruction": WeightedTerm(ReconstructionTerm(), 1.0),
            "codec": WeightedTerm(CodecTerm(), 1.0),
        }
    )
    pixels = pixels_of(case, count=4)
    batch = VideoBatch(
        pixels=pixels,
        fps=torch.full((4,), 8.0),
        captions=("",) * 4,
        positions=torch.arange(4),
        keys=("",) * 4,
    )
    prediction = stage(stage.example(batch, Draws(0, range(4), torch.device("cpu"))))
    objective(prediction, batch)[0].backward()
    weights = [weight for weight in tokenizer.parameters() if weight.requires_grad]
    assert all(weight.grad is not None for weight in weights)
    torch.optim.SGD(weights, lr=0.1).step()
    stage.observe(prediction.statistics)
    changed = {
        name
        for name, value in tokenizer.state_dict().items()
        if not torch.equal(value, before[name])
    }
    # Not all of them: a rung that happens to say nothing teaches its upsampler nothing.
    assert any(name.startswith("codec.upsamplers.") for name in changed)
    statistics = ("mean.", "square.", "codec.variance.", "codec.usage.")
    assert all(name in trained or name.startswith(statistics) for name in changed)
