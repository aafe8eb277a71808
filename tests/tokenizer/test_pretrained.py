import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_vaes import VAES, ltx, save_vae, wan

from hstvg.runtime.assemble import open_run, settle
from hstvg.runtime.config import build, compose
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.launch import run_training
from hstvg.tokenizer.pretrained import PretrainedTokenizer
from hstvg.tokenizer.vae_family import LTXVideo, regrouped

CLIP = (17, 16, 16)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folder and VAE by name, as diffusers has written them."""
    root = tmp_path_factory.mktemp("vae")
    return {name: (root / name, save_vae(make, root / name)) for name, make in VAES.items()}


@pytest.fixture
def folder(published, tmp_path):
    """A copy of the smallest, to spoil."""
    return shutil.copytree(published["wan"][0], tmp_path / "vae")


def tokenizer_of(folder, clip=CLIP, **settings):
    return PretrainedTokenizer(pretrained=str(folder), clip_size=clip, **settings)


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# ---- the VAE as it was published --------------------------------------------------------------


@pytest.mark.parametrize("name", VAES)
@torch.no_grad()
def test_latents_and_pixels_are_those_of_diffusers(published, name):
    folder, vae = published[name]
    tokenizer, pixels = tokenizer_of(folder), noise(2, 3, *CLIP)
    theirs, ours = vae.encode(pixels).latent_dist, tokenizer.posterior(pixels)
    assert torch.allclose(ours.mean, theirs.mean, atol=1e-5)
    assert torch.allclose(ours.logvar, theirs.logvar, atol=1e-5)
    time = (torch.zeros(2),) if name == "ltx_timed" else ()
    decoded = vae.decode(theirs.mean, *time).sample.clamp(-1, 1)
    assert torch.allclose(tokenizer.decode(tokenizer.encode(pixels)), decoded, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "strides", "frames"),
    [
        ("wan", (4, 4, 4), 4),
        ("wan_patched", (4, 8, 8), 4),
        ("cogvideox", (4, 8, 8), 8),
        ("ltx", (4, 4, 4), 4),
    ],
)
def test_strides_and_groups(published, name, strides, frames):
    tokenizer = tokenizer_of(published[name][0])
    assert (tokenizer.strides, tokenizer.frames, tokenizer.channels) == (strides, frames, 4)
    assert tokenizer.first_alone


def test_moments_begin_at_those_of_the_vae(published):
    found = {}
    for name in ("wan", "cogvideox"):
        tokenizer = tokenizer_of(published[name][0])
        mean, square = tokenizer.mean.value, tokenizer.square.value
        found[name] = mean.tolist() + (square - mean.square()).sqrt().tolist()
    assert found["wan"] == pytest.approx([0.1, -0.2, 0.3, -0.4, 1, 2, 3, 4])
    assert found["cogvideox"] == pytest.approx([0, 0, 0, 0, 2, 2, 2, 2])


def test_training_leaves_the_vae_at_rest(published):
    tokenizer = tokenizer_of(published["wan"][0]).train()
    assert tokenizer.codec.training
    assert not any(module.training for module in tokenizer.vae.modules())
    assert not any(weight.requires_grad for weight in tokenizer.vae.parameters())


def test_a_gradient_reaches_the_latent_through_the_decoder(published):
    tokenizer = tokenizer_of(published["wan"][0])
    z = torch.randn(1, 4, *tokenizer.latent_size, requires_grad=True)
    tokenizer.reconstruct(z).square().mean().backward()
    assert (z.grad.abs().amax((1, 2, 3, 4)) > 0).all()


def test_the_folder_of_a_pipeline_has_the_vae_in_it(published, tmp_path):
    shutil.copytree(published["wan"][0], tmp_path / "vae")
    with pytest.raises(ValueError, match="give subfolder=vae"):
        tokenizer_of(tmp_path)
    assert tokenizer_of(tmp_path, subfolder="vae").channels == 4


def test_a_vae_of_the_hub_is_found_by_id(published, tmp_path, monkeypatch):
    from huggingface_hub import constants

    from hstvg.runtime.lineage import vae_identity

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # as if fetched before
    with pytest.raises(ValueError, match="is no folder, and the hub"):
        PretrainedTokenizer(pretrained="someone/video", clip_size=CLIP)
    cached, commit = tmp_path / "models--someone--video", 40 * "a"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    shutil.copytree(published["wan"][0], cached / "snapshots" / commit / "vae")
    source = {"pretrained": "someone/video", "subfolder": "vae"}
    assert PretrainedTokenizer(**source, clip_size=CLIP).channels == 4
    assert vae_identity(**source, revision=None) == f"someone/video@{commit}/vae"


# ---- what is refused --------------------------------------------------------------------------


def test_a_vae_must_be_given_and_only_one(published):
    with pytest.raises(ValueError, match="give the VAE"):
        PretrainedTokenizer(clip_size=CLIP)
    tokenizer = tokenizer_of(published["wan"][0])
    with pytest.raises(ValueError, match="give the VAE"):
        tokenizer_of(published["wan"][0], vae=tokenizer.config)


def test_a_vae_of_no_known_family_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderKL"}))
    with pytest.raises(ValueError, match="AutoencoderKL is no VAE that is known here"):
        tokenizer_of(folder)


def test_weights_that_are_missing_are_not_left_to_chance(folder):
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights.pop("decoder.conv_in.weight")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights of its VAE: decoder\.conv_in\.weight"):
        tokenizer_of(folder)


def test_pickled_weights_are_not_read(folder):
    file = folder / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), folder / "diffusion_pytorch_model.bin")
    file.unlink()
    with pytest.raises(ValueError, match="pickled weights are not read"):
        tokenizer_of(folder)


def test_a_decoder_that_draws_noise_is_refused(tmp_path):
    save_vae(lambda: ltx(decoder_inject_noise=(True,) * 5), tmp_path)
    with pytest.raises(ValueError, match="draws noise"):
        tokenizer_of(tmp_path)


def test_cogvideox_decodes_latent_frames_in_pairs(published):
    with pytest.raises(ValueError, match="1 \\+ n x 8"):
        tokenizer_of(published["cogvideox"][0], clip=(13, 16, 16))


# ---- streams ----------------------------------------------------------------------------------


def test_frames_are_regrouped_whatever_the_chunks():
    video = torch.arange(13.0).view(1, 1, 13, 1, 1)
    for sizes in ([13], [1, 4, 4, 4], [5, 3, 5], [1] * 13):
        batches = list(regrouped(video.split(sizes, 2), 5, 4))
        assert [batch.shape[2] for batch in batches] == [5, 4, 4]
        assert torch.equal(torch.cat(batches, 2), video)
    assert [batch.shape[2] for batch in regrouped([video[:, :, :1]], 5, 4)] == [1]
    for length in (2, 4, 7):
        with pytest.raises(ValueError, match="ends within a batch"):
            list(regrouped([video[:, :, :length]], 5, 4))


@pytest.mark.parametrize("name", ["ltx", "ltx_timed"])
@torch.no_grad()
def test_ltx_streams_nearly_what_the_whole_gives(published, name, monkeypatch):
    tokenizer = tokenizer_of(published[name][0])
    assert not tokenizer.streams_exactly
    video = noise(1, 3, 1 + 4 * 39, 16, 16)
    z = tokenizer.encode(video)
    decoded = tokenizer.decode(z)

    def streamed(chunk):
        latents = torch.cat(list(tokenizer.encode_stream(video.split(chunk, 2))), 2)
        pixels = torch.cat(list(tokenizer.decode_stream(z.split(chunk, 2))), 2)
        assert latents.shape == z.shape
        assert pixels.shape == decoded.shape
        return (latents - z).square().mean() / z.var(), (
            (pixels - decoded).square().mean() / decoded.var()
        )

    near = streamed(5)
    assert near == streamed(11)  # the chunks do not matter
    assert near[0] < 0.1
    assert near[1] < 1e-3
    monkeypatch.setattr(LTXVideo, "context", 30)  # as far as the layers see
    assert all(error < 1e-9 for error in streamed(5))
    monkeypatch.setattr(LTXVideo, "context", 1)
    assert all(far > error for far, error in zip(streamed(5), near, strict=True))


@torch.no_grad()
def test_ltx_streams_exactly_what_fits_a_window(published):
    tokenizer = tokenizer_of(published["ltx"][0])
    video = noise(1, 3, 1 + 4 * 7, 16, 16)
    z = tokenizer.encode(video)
    assert torch.equal(torch.cat(list(tokenizer.encode_stream(video.split(3, 2))), 2), z)
    decoded = torch.cat(list(tokenizer.decode_stream(z.split(3, 2))), 2)
    assert torch.equal(decoded, tokenizer.decode(z))
    with pytest.raises(ValueError, match="ends within a group"):
        list(tokenizer.encode_stream([video[:, :, :-1]]))


# ---- a run on it ------------------------------------------------------------------------------


def given(*more):
    return [
        *("run.steps=2", "run.global_batch=4", "run.micro_batch=2", "run.checkpoint_every=2"),
        *("run.validate_every=2", "run.validate_clips=4", "run.sample_clips=1"),
        *("data.num_frames=13", "data.height=16", "data.width=16"),
        *("worker=local", "worker.threads=1", "engine=torch"),
        *more,
    ]


def test_the_choice_replaces_the_whole_node():
    chosen = ["tokenizer=pretrained", "tokenizer.pretrained=vae"]
    config = compose("train", given("data.path=data", "run.name=run", *chosen))
    assert config["tokenizer"] == {
        "_target_": "hstvg.tokenizer.pretrained.PretrainedTokenizer",
        "clip_size": [13, 16, 16],
        "pretrained": "vae",
        "subfolder": None,
        "revision": None,
    }
    with pytest.raises(ConfigError, match=r"missing tokenizer\.pretrained"):
        compose("train", given("data.path=data", "run.name=run", "tokenizer=pretrained"))
    with pytest.raises(ConfigError, match=r"unknown key tokenizer\.channels"):
        compose("train", given("data.path=data", "run.name=run", *chosen, "tokenizer.channels=4"))
    with pytest.raises(ConfigError, match="PretrainedTokenizer: vae is no folder"):
        build(config["tokenizer"])


def test_the_folder_is_found_from_anywhere(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    chosen = ["tokenizer=pretrained", f"tokenizer.pretrained={folder.name}"]
    config = settle(compose("train", given("data.path=data", "run.name=run", *chosen)))
    assert config["tokenizer"]["pretrained"] == str(folder)


def test_a_run_trains_the_codec_and_its_bundle_needs_nothing_else(
    folder, tmp_path, shapes_dataset, capsys
):
    overrides = given(
        *(f"data.path={shapes_dataset}", f"run.root={tmp_path}/runs", "run.name=tok"),
        *("tokenizer=pretrained", f"tokenizer.pretrained={folder}"),
    )
    run_training(compose("train", [*overrides, "dry_run=true"]), [])
    assert "4 channels x 4x4x4" in capsys.readouterr().out
    run_training(compose("train", overrides), overrides)
    run, pixels = tmp_path / "runs" / "tok", noise(1, 3, 13, 16, 16)
    published = tokenizer_of(folder, clip=(13, 16, 16))
    said = json.loads((run / "lineage.json").read_text())["vae"]
    assert said["pretrained"] == str(folder)

    save_vae(wan, folder, seed=1)  # another VAE in the same place
    with pytest.raises(ConfigError, match="trained with another identity of its vae"):
        run_training(compose("train", [*overrides, "run.steps=4"]), overrides)
    shutil.rmtree(folder)

    loaded = open_run(run).tokenizer
    with torch.no_grad():
        was, now = published.posterior(pixels), loaded.posterior(pixels)
    assert torch.equal(was.mean, now.mean)
    assert not torch.equal(loaded.mean.value, published.mean.value)

    second = [
        *(override for override in overrides if not override.startswith("tokenizer")),
        *("stage=generator", f"tokenizer_run={run}", "run.name=gen"),
        *("generator.widths=[16,32]", "generator.head_dim=16", "generator.window=2"),
        *("generator.text.width=32", "generator.text.layers=1", "generator.text.heads=2"),
    ]
    run_training(compose("train", second), second)
    generator = open_run(tmp_path / "runs" / "gen")
    with torch.no_grad():
        assert torch.equal(generator.tokenizer.posterior(pixels).mean, was.mean)
