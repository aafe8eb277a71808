"""Clips of which it is said where their objects are."""

import json

import numpy as np
import pytest
import torch
from test_bundle import CONFIG, PROMPTS, awake_model, save

from hstvg.generate.workflow import write_clips
from hstvg.generator.generator import Sampling
from hstvg.runtime.config import compose
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.layout_scores import layout_scores, overlaps_of, sample_placed
from hstvg.runtime.sampling import generate
from hstvg.scene.grammar import write_caption
from hstvg.scene.layout import places
from hstvg.scene.syntax import Keyframe, Scene, SceneObject

PLACED = CONFIG | {
    "generator": CONFIG["generator"]
    | {"layout": {"_target_": "hstvg.generator.layout.Layouts"}, "context_frames": 1}
}
SETTINGS = Sampling(steps=2, guidance=2.0)


def scene(x0=0.1, x1=0.6):
    """A red circle that goes from x0 to x1 in two seconds."""
    ends = [Keyframe(t=t, box=(x, 0.4, x + 0.3, 0.7)) for t, x in ((0.0, x0), (1.0, x1))]
    thing = SceneObject(id=0, colour="red", shape="circle", motion="right", keyframes=tuple(ends))
    return Scene(objects=(thing,))


def shown(which, frames=16):
    return places(which, np.arange(frames) / 8.0)


def write(model, shown=None, num_frames=None, prompts=PROMPTS[:1]):
    return write_clips(
        model, prompts, seed=0, settings=SETTINGS, num_frames=num_frames, shown=shown
    )


def test_a_clip_listens_to_where_things_are():
    model = awake_model(PLACED)
    plain, left, right = (
        write(model, where) for where in (None, [shown(scene())], [shown(scene(0.6, 0.1))])
    )
    assert not np.array_equal(plain, left)
    assert not np.array_equal(left, right)
    both = write(model, [shown(scene()), shown(scene(0.6, 0.1))], prompts=[PROMPTS[0]] * 2)
    assert np.abs(both[:1].astype(int) - left).max() <= 1


def test_a_later_block_is_told_its_own_part():
    model, met = awake_model(PLACED), []
    cue = model.generator.unet.cues["layout"]
    tokens = cue.tokens
    cue.tokens = lambda signal, told: met.append(told.objects.layout.boxes) or tokens(signal, told)
    write(model, [shown(scene())], num_frames=14)
    starts = []
    for boxes in met:
        if not starts or not torch.equal(boxes, starts[-1]):
            starts.append(boxes)
    assert len(starts) == 2  # of 8 frames, the first 2 of the second given
    assert starts[0].shape[2] == starts[1].shape[2] == model.generator.latent_size.t
    speed = 0.5 / 16  # per frame
    moved = starts[1][0, 0, 0, 0] - starts[0][0, 0, 0, 0]
    assert float(moved) == pytest.approx(6 * speed, abs=1e-5)


REMEMBERS = {
    "kinds": ["local", "paged"],
    "history": {"_target_": "hstvg.generator.history.History", "page": 2, "window": 1, "tail": 1},
}


@pytest.mark.parametrize("changes", [{}, REMEMBERS], ids=["goes on", "remembers"])
def test_a_picture_stands_still_where_things_are_at_first(changes):
    """A given picture is padded before its first frame, where no boxes are known; two frames are a
    frame of the latent."""
    model, met = awake_model(PLACED | {"generator": PLACED["generator"] | changes}), []
    cue = model.generator.unet.cues["layout"]
    tokens = cue.tokens
    cue.tokens = lambda signal, told: met.append(told.objects.layout.boxes) or tokens(signal, told)
    given = np.zeros((1, 1, 16, 16, 3), np.uint8)
    where = [shown(scene(), frames=9)]
    write_clips(model, PROMPTS[:1], seed=0, settings=SETTINGS, given=given, shown=where)
    speed = 0.5 / 16  # per frame
    # Of the picture, which is there twice; of frames 1 and 2; ...
    lefts = [0.1, *(0.1 + speed * (first + 0.5) for first in (1, 3, 5))]
    assert met[0][0, 0, :, 0].tolist() == pytest.approx(lefts, abs=1e-5)


def test_an_evaluation_tells_samples_where_things_are():
    model, where = awake_model(PLACED), [shown(scene(), 8), shown(scene(0.6, 0.1), 8)]
    prompts = [PROMPTS[0]] * 2
    how = {"seed": 0, "first": 0, "settings": SETTINGS, "device": torch.device("cpu")}
    placed = sample_placed(model, prompts, where, **how)
    told = write_clips(model, prompts, shown=where, **how)
    assert all(np.array_equal(one["placed"], clip) for one, clip in zip(placed, told, strict=True))
    caption = write_caption(scene())
    clips = {"real": told[0], "other": told[0]}
    assert set(overlaps_of(clips, caption, where[0])) == {"real"}
    assert overlaps_of(clips, "a dog", where[0]) == {}
    assert overlaps_of(clips, caption, shown(None, 8)) == {}
    scores = layout_scores([overlaps_of(clips, caption, where[0]), {}])
    assert scores["real"]["n"] == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("placed")
    save(folder / "export", PLACED)
    return folder


def ask(run, tmp_path, *overrides):
    facts = [f"run={run}", f"prompt={write_caption(scene())}", f"out={tmp_path / 'clip.mp4'}"]
    return generate(compose("generate", [*facts, "steps=2", *overrides]))


def test_a_scene_is_a_file(run, tmp_path):
    file = tmp_path / "scene.json"
    file.write_text(scene().model_dump_json())
    (placed,) = ask(run, tmp_path, f"scene={file}")
    told = placed.read_bytes()
    (plain,) = ask(run, tmp_path)
    assert plain.read_bytes() != told


def test_a_scene_says_what_it_shows(run, tmp_path):
    file = tmp_path / "scene.json"
    file.write_text(scene().model_copy(update={"style": "warm"}).model_dump_json())
    fixed = [f"run={run}", f"scene={file}", "steps=2"]
    (alone,) = generate(compose("generate", [*fixed, f"out={tmp_path / 'alone.mp4'}"]))
    words = "prompt='a red circle moves right, in warm style'"
    (said,) = generate(compose("generate", [*fixed, words, f"out={tmp_path / 'said.mp4'}"]))
    assert alone.read_bytes() == said.read_bytes()
    (plain,) = ask(run, tmp_path, f"scene={file}")
    assert plain.read_bytes() != alone.read_bytes()
    with pytest.raises(ConfigError, match="scene=FILE"):
        generate(compose("generate", [f"run={run}", f"out={tmp_path / 'none.mp4'}"]))


def test_a_wrong_scene_is_one_line(run, tmp_path):
    file = tmp_path / "scene.json"
    with pytest.raises(ConfigError, match="does not exist"):
        ask(run, tmp_path, f"scene={file}")
    for text, said in (
        ("{", "scene.json: the file: Invalid JSON"),
        (json.dumps({"objects": []}), "objects: Tuple should have at least 1 item"),
        (json.dumps({"objects": [], "mood": "grim"}), "scene.json"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=said) as caught:
            ask(run, tmp_path, f"scene={file}")
        assert "\n" not in str(caught.value)
    file.write_text(scene().model_dump_json())
    save(tmp_path / "plain" / "export")
    with pytest.raises(ConfigError, match=r"\+layout=boxes"):
        ask(tmp_path / "plain", tmp_path, f"scene={file}")
    assert not (tmp_path / "clip.mp4").exists()
