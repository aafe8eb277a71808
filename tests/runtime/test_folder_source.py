import json
import os

import numpy as np
import pytest

from hstvg.data.transcode import Form
from hstvg.data.video import encode_video, probe_video
from hstvg.runtime import caption as caption_module
from hstvg.runtime.clip_rules import spans_of
from hstvg.runtime.config import build, compose
from hstvg.runtime.duplicates import find_duplicates
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.index import read_index
from hstvg.runtime.ingest import ingest, preview
from hstvg.runtime.source import Refused
from hstvg.runtime.source_folder import FolderSource
from hstvg.runtime.split import hold_out

FPS = 10


def texture(seed, *, height=48, width=64):
    cells = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3))
    return cells.repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)


def shot(seed, num_frames, *, pixels_per_frame=2):
    image = texture(seed)
    rolled = [np.roll(image, pixels_per_frame * n, axis=1) for n in range(num_frames)]
    return np.stack(rolled)


def write(folder, name, *shots, text="a texture moves", crf=18):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_video(np.concatenate(shots), FPS, crf=crf))
    if text:
        path.with_suffix(".txt").write_text(text)
    return path


def outcomes(source, ask=None):
    """Name of each item -> what came of it."""
    items = source.settle(
        source.items(), ask or (lambda name, question, items: map(question, items))
    )
    return {item["name"]: samples_of(source, item) for item in items}


def samples_of(source, item):
    if "refusal" in item:
        return [Refused(item["refusal"])]
    try:
        return list(source.samples(item))
    except Refused as refusal:
        return [refusal]


def reasons(found):
    return [str(outcome) for outcome in found if isinstance(outcome, Refused)]


def folder_source(folder, **settings):
    return FolderSource(path=str(folder), val_fraction=0.0, **settings)


# ---- what is made of a video ------------------------------------------------------------------


def test_long_footage_becomes_equal_parts_that_share_a_caption(tmp_path):
    write(tmp_path, "long.mp4", shot(0, 75))
    (found,) = outcomes(folder_source(tmp_path, max_s=3.0)).values()
    assert [sample.key.rpartition("-")[2] for sample in found] == ["p000", "p001", "p002"]
    assert [sample.facts["num_frames"] for sample in found] == [25, 25, 25]
    assert [sample.facts["start_s"] for sample in found] == [0.0, 2.5, 5.0]
    assert {sample.facts["caption"] for sample in found} == {"a texture moves"}
    assert {sample.facts["source"] for sample in found} == {"long.mp4"}
    for sample in found:
        assert probe_video(sample.video).num_frames == 25


def test_what_is_short_enough_stays_whole_and_has_a_plain_key(tmp_path):
    path = write(tmp_path, "short.mp4", shot(0, 30))
    (found,) = outcomes(folder_source(tmp_path, max_s=3.0)).values()
    (whole,) = outcomes(folder_source(tmp_path)).values()
    assert [sample.key for sample in found] == [sample.key for sample in whole]
    assert "start_s" not in found[0].facts
    assert spans_of(path, cuts=False, max_s=3.0) == [(0.0, None)]
    assert spans_of(path, cuts=False, max_s=1.0) == [(0.0, 1.0), (1.0, 2.0), (2.0, None)]


def test_parts_that_are_too_short_or_too_still_are_refused_alone(tmp_path):
    pytest.importorskip("scenedetect")
    write(tmp_path, "film.mp4", shot(1, 30), shot(2, 20, pixels_per_frame=0), shot(3, 10))
    source = folder_source(tmp_path, cuts=True, min_motion=0.05, min_s=1.5)
    (found,) = outcomes(source).values()
    assert [type(outcome).__name__ for outcome in found] == ["Sample", "Refused", "Refused"]
    assert found[0].key.endswith("-p000")
    assert found[0].facts["num_frames"] == 30
    still, short = reasons(found)
    assert still.startswith("still: 0.00")
    assert still.endswith("of at least 0.05 frame widths a second (part p001, from 3.00 s)")
    assert short.startswith("too short: 1.00 of at least 1.50 s (part p002, from 5")


def test_scenes_that_are_long_are_cut_once_more(tmp_path):
    pytest.importorskip("scenedetect")
    write(tmp_path, "film.mp4", shot(1, 40), shot(2, 20))
    (found,) = outcomes(folder_source(tmp_path, cuts=True, max_s=2.0)).values()
    assert [sample.facts["num_frames"] for sample in found] == [20, 20, 20]


def test_the_form_is_what_the_options_say(tmp_path):
    write(tmp_path, "a.mp4", shot(0, 20))
    (found,) = outcomes(folder_source(tmp_path, policy="crop", height=32, width=32, fps=5)).values()
    facts = found[0].facts
    assert (facts["height"], facts["width"], facts["fps"]) == (32, 32, 5.0)
    rules = folder_source(tmp_path, gop=4, max_side=32).rules
    assert rules.form == Form(gop=4, max_side=32)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["source.policy=stretch"], "policy=stretch"),
        (["source.policy=pad"], "even height and width"),
        (["source.max_s=0"], "max_s=0"),
        (["source.max_s=1", "source.min_s=2"], "min_s=2"),
    ],
)
def test_options_that_make_no_sense_fail_in_one_line(tmp_path, options, said):
    config = compose("prepare", ["source=folder", f"source.path={tmp_path}", "out=out", *options])
    with pytest.raises(ConfigError, match=said) as caught:
        build(config["source"])
    assert "\n" not in str(caught.value)


def test_cuts_without_the_package_say_what_to_install(tmp_path, monkeypatch):
    write(tmp_path, "a.mp4", shot(0, 5))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'hstvg\[cuts\]'"):
        folder_source(tmp_path, cuts=True).items()


# ---- duplicates -------------------------------------------------------------------------------


def test_of_duplicates_the_first_by_name_is_kept(tmp_path):
    write(tmp_path, "b.mp4", shot(0, 20), crf=35)
    write(tmp_path, "a.mp4", shot(0, 20))
    write(tmp_path, "other.mp4", shot(7, 20))
    write(tmp_path, "zero.mp4", shot(0, 2)).write_bytes(b"")

    def ask(name, question, items):
        return [_answer(question, item) for item in items]

    found = outcomes(folder_source(tmp_path, dedup=60), ask)
    assert reasons(found["b.mp4"]) == ["duplicate: of a.mp4"]
    assert not reasons(found["a.mp4"])
    assert not reasons(found["other.mp4"])
    assert reasons(found["zero.mp4"])[0].startswith("unreadable: ")
    assert not reasons(outcomes(folder_source(tmp_path), ask)["b.mp4"])


def _answer(question, item):
    try:
        return question(item)
    except Refused as refusal:
        return refusal


def test_duplicates_are_counted_in_bits_and_do_not_chain():
    base = [0] * 11
    prints = {"a": [0, *base], "b": [0b111, *base], "c": [0b111111, *base]}
    assert find_duplicates(prints, 2) == {}
    assert find_duplicates(prints, 3) == {"b": "a"}
    assert find_duplicates(prints, 6) == {"b": "a", "c": "a"}
    assert find_duplicates({}, 3) == {}


# ---- what is left out -------------------------------------------------------------------------


def test_what_is_no_plain_file_is_listed_and_not_opened(tmp_path):
    folder = tmp_path / "in"
    write(folder, "a.mp4", shot(0, 5))
    os.mkfifo(folder / "pipe.mp4")
    (folder / "pipe.txt").write_text("a pipe")
    (folder / "gone.mp4").symlink_to(folder / "nowhere")
    (folder / "gone.txt").write_text("a dangling link")
    (tmp_path / "outside").mkdir()
    (folder / "linked").symlink_to(tmp_path / "outside", target_is_directory=True)
    write(folder, ".hidden/b.mp4", shot(0, 5))
    found = {name: reasons(outcome) for name, outcome in outcomes(folder_source(folder)).items()}
    assert found.keys() == {"a.mp4", "pipe.mp4", "gone.mp4", "linked"}
    assert found["a.mp4"] == []
    assert found["pipe.mp4"] == ["unreadable: pipe.mp4 is no regular file"]
    assert found["gone.mp4"][0].startswith("unreadable: gone.mp4: ")
    assert found["linked"] == ["symlinked folder: not followed"]


def test_captions_beyond_the_limits_are_refused(tmp_path, monkeypatch):
    write(tmp_path, "text.mp4", shot(0, 5), text="x" * (2**20 + 1))
    write(tmp_path, "json.mp4", shot(0, 5), text="").with_suffix(".json").write_text(
        json.dumps({"caption": "a", "rest": "x" * 2**20})
    )
    found = outcomes(folder_source(tmp_path))
    assert reasons(found["text.mp4"])[0].startswith("oversize: text.txt has 1048577 bytes")
    assert reasons(found["json.mp4"])[0].startswith("oversize: json.json has ")
    (tmp_path / "captions.csv").write_text("file,caption\n" * 9)
    monkeypatch.setattr(caption_module, "LARGEST_TABLE", 100)
    with pytest.raises(ConfigError, match=r"captions\.csv has .* MB, more than"):
        folder_source(tmp_path).items()


def test_the_only_clip_of_use_is_trained_on():
    names = [f"{n}.mp4" for n in range(4)]
    assert hold_out(names, 0.01, lambda name: name == "2.mp4") == set()
    assert hold_out(names, 0.01, lambda name: True) < set(names)
    assert len(hold_out(names, 0.01, lambda name: True)) == 1


# ---- the whole way ----------------------------------------------------------------------------


@pytest.mark.ray
def test_parts_and_duplicates_become_a_data_set(ray_cluster, tmp_path):
    write(tmp_path / "in", "a.mp4", shot(0, 50))
    write(tmp_path / "in", "b.mp4", shot(0, 50), crf=30)
    write(tmp_path / "in", "c.mp4", shot(5, 30))
    source = FolderSource(path=str(tmp_path / "in"), max_s=1.0, dedup=60, min_motion=0.01)
    assert "the parts of 3 videos" in preview(source, tmp_path / "out", 4)
    summary = ingest(source, tmp_path / "out", clips_per_shard=4)
    assert (summary.num_clips, summary.refused) == (8, {"duplicate": 1})
    # One video's parts are more than a shard takes, and all lie in one split.
    rows = read_index(tmp_path / "out").table.to_pylist()
    sizes = {"shards/000000.tar": 4, "shards/000000-1.tar": 4}
    assert {name: sum(row["shard"] == name for row in rows) for name in sizes} == sizes
    splits = {(row["key"][:1], row["split"]) for row in rows}
    assert len(splits) == 2
    assert summary.splits.keys() == {"train", "val"}
