import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from hstvg.generate.bundle import assemble, assemble_model, load_model, save_model
from hstvg.generate.workflow import read_style, to_frames, write_clips, write_scales
from hstvg.generator.generator import Sampling

CONFIG = {
    "stage": "generator",
    "step": 7,
    "window": {"num_frames": 8, "fps": 8.0, "height": 16, "width": 16},
    "tokenizer": {
        "_target_": "hstvg.tokenizer.video_tokenizer.VideoTokenizer",
        "clip_size": [8, 16, 16],
        "strides": [2, 4, 4],
        "channels": 4,
        "base": 8,
        "depth": 1,
    },
    "generator": {
        "_target_": "hstvg.generator.hierarchical.HierarchicalGenerator",
        "path": {"_target_": "hstvg.paths.pyramid_flow.PyramidFlow", "boundaries": [0.5, 1.0]},
        "text": {
            "_target_": "hstvg.scene.text.TextEncoder",
            "width": 16,
            "layers": 1,
            "heads": 2,
        },
        "draws": [1, 1],
        "widths": [16, 32],
        "head_dim": 16,
    },
}
PROMPTS = ["a red circle moves right", "a blue square"]


def awake_model(config):
    """An untrained model none of whose layers is silent."""
    torch.manual_seed(0)
    model = assemble_model(config)
    for module in (model.tokenizer, model.generator):
        for parameter in module.parameters() if module is not None else ():
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.tokenizer.square.value.fill_(4.0)
    return model


def save(folder, config=CONFIG):
    model = awake_model(config)
    parts = {"tokenizer": model.tokenizer, "generator": model.generator}
    weights = {
        f"{name}.{key}": value.clone()
        for name, module in parts.items()
        if module is not None
        for key, value in module.state_dict().items()
    }
    save_model(folder, config, weights, "# A model\n")
    return model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "export"
    return folder, save(folder)


def clips(model, seed=0, prompts=PROMPTS, **options):
    return write_clips(model, prompts, seed=seed, settings=Sampling(steps=2), **options)


def test_a_loaded_model_writes_the_same_clips(bundle):
    folder, model = bundle
    loaded = load_model(folder)
    written = clips(loaded)
    assert written.shape == (2, 8, 16, 16, 3)
    assert written.std() > 5
    assert np.array_equal(written, clips(model))
    assert np.array_equal(written, clips(load_model(str(folder))))
    assert not np.array_equal(written, clips(loaded, seed=1))


def test_a_loaded_model_knows_its_window_and_is_at_rest(bundle):
    loaded = load_model(bundle[0])
    assert (loaded.step, loaded.window.num_frames, loaded.window.fps) == (7, 8, 8.0)
    for module in (loaded.tokenizer, loaded.generator):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert (bundle[0] / "README.md").read_text() == "# A model\n"


def test_a_clip_is_the_same_in_any_batch(bundle):
    _, model = bundle
    alone = clips(model, prompts=PROMPTS[1:], first=1)[0].astype(int)
    # Sums in another order may round a value across the border of two bytes.
    assert np.abs(alone - clips(model)[1]).max() <= 1


def test_a_style_is_named_in_words(bundle):
    _, model = bundle
    plain = clips(model, prompts=PROMPTS[:1])
    warm, again = (clips(model, prompts=[f"{PROMPTS[0]}, in warm style"]) for _ in range(2))
    assert np.array_equal(warm, again)
    assert not np.array_equal(warm, plain)


def test_every_clip_may_look_like_a_video_of_its_own():
    style = {"_target_": "hstvg.generator.style.Styling", "width": 8}
    model = awake_model({**CONFIG, "generator": {**CONFIG["generator"], "style": style}})
    bright = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    videos = np.stack([bright, bright // 4])
    alone = [read_style(model, video[None], 2, torch.device("cpu")).statistics for video in videos]
    both = read_style(model, videos, 2, torch.device("cpu"))
    assert torch.equal(alone[0][0], alone[0][1])
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)
    for n in range(2):
        assert torch.allclose(both.statistics[n], alone[n][0], atol=1e-5)
    assert both.known.all()
    shown = [clips(model, reference=videos), clips(model, reference=videos[::-1].copy())]
    assert not np.array_equal(*shown)


def test_a_clip_is_shown_as_it_comes_into_being(bundle):
    _, model = bundle
    scales = write_scales(model, PROMPTS, seed=0, settings=Sampling(steps=2))
    assert [clips.shape for clips in scales] == [(2, 8, 16, 16, 3)] * 2
    assert np.array_equal(scales[-1], clips(model))
    assert not np.array_equal(scales[0], scales[-1])


def test_what_one_block_cannot_hold_is_refused(bundle):
    _, model = bundle
    assert np.array_equal(clips(model, num_frames=4), clips(model)[:, :4])
    with pytest.raises(ValueError, match="writes one block and cannot go on"):
        clips(model, num_frames=9)
    with pytest.raises(ValueError, match="writes one block and cannot go on"):
        clips(model, given=np.zeros((2, 1, 16, 16, 3), np.uint8))


PARTS = ("path", "draws", "widths", "head_dim")
JOINT = {
    "_target_": "hstvg.generator.joint.JointGenerator",
    "kappa": 1,
    "text": CONFIG["generator"]["text"],
    "transformer": {"width": 16, "depth": 1, "head_dim": 8},
    "denoiser": {name: CONFIG["generator"][name] for name in PARTS},
}


@pytest.mark.parametrize(
    ("generator", "kappas"), [(CONFIG["generator"], (None,)), (JOINT, (0, 1, 3))]
)
def test_a_denoiser_goes_on_block_after_block(generator, kappas):
    model = awake_model(CONFIG | {"generator": generator | {"context_frames": 1}})
    for kappa in kappas:
        settings = Sampling(steps=2, kappa=kappa)
        written = write_clips(model, PROMPTS, seed=0, settings=settings, num_frames=16)
        assert written.shape == (2, 16, 16, 16, 3)
        block = write_clips(model, PROMPTS, seed=0, settings=settings)
        assert np.array_equal(written[:, :8], block)
        picture = written[:, :1]
        on = write_clips(model, PROMPTS, seed=0, settings=settings, num_frames=7, given=picture)
        assert on.shape == (2, 7, 16, 16, 3)
        assert np.array_equal(on[:, :1], picture)


def test_a_tokenizer_alone_is_a_bundle_that_generates_nothing(tmp_path):
    model = save(tmp_path / "export", CONFIG | {"generator": None, "stage": "tokenizer"})
    loaded = load_model(tmp_path / "export")
    pixels = torch.rand(1, 3, 8, 16, 16) * 2 - 1
    with torch.no_grad():
        assert torch.equal(loaded.tokenizer.encode(pixels), model.tokenizer.encode(pixels))
    with pytest.raises(ValueError, match="run of stage=generator"):
        clips(loaded)


def test_weights_of_another_model_are_refused(bundle, tmp_path):
    folder, _ = bundle
    wider = {"format": 1} | CONFIG | {"tokenizer": CONFIG["tokenizer"] | {"base": 16}}
    (tmp_path / "config.json").write_text(json.dumps(wider))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="weights of the tokenizer do not fit"):
        load_model(tmp_path)


def test_a_folder_without_a_bundle_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "os.system", "command": "true"},
        {"_target_": "hstvg_other.Model"},
        {"_target_": "print"},
        {"parts": [{"deep": {"_target_": "subprocess.run", "args": ["true"]}}]},
        CONFIG["tokenizer"] | {"clip_size": {"_target_": "builtins.eval", "source": "[8, 16, 16]"}},
    ],
)
def test_a_target_outside_the_project_is_refused(node):
    with pytest.raises(ValueError, match="no class of hstvg"):
        assemble(node)


def test_what_a_module_of_the_project_imports_is_no_class_of_it(tmp_path):
    """A bundle is a stranger's file: loading it must not write one."""
    victim = tmp_path / "victim"
    node = {"_target_": "hstvg.generate.bundle.save_file", "tensors": {}, "filename": str(victim)}
    with pytest.raises(ValueError, match="no class of hstvg"):
        assemble(node)
    assert not victim.exists()


def test_loading_needs_no_platform(bundle):
    program = """if True:
        import sys
        from hstvg.generate.bundle import load_model
        from hstvg.generate.workflow import write_clips
        from hstvg.generator.generator import Sampling
        write_clips(load_model(sys.argv[1]), ["a red circle"], seed=0, settings=Sampling(steps=1))
        platform = {"ray", "hydra", "omegaconf", "deepspeed", "wandb", "webdataset"}
        print(sorted(platform & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", program, str(bundle[0])], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_frames_by_hand():
    pixels = torch.tensor([-1.0, 0.0, 1.0, -3.0, 3.0]).reshape(1, 1, 5, 1, 1)
    frames = to_frames(pixels.expand(1, 3, 5, 1, 1))
    assert frames.dtype == np.uint8
    assert frames[0, :, 0, 0, 0].tolist() == [0, 128, 255, 0, 255]
