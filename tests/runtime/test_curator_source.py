import json

import numpy as np
import pytest

from hstvg.data.video import encode_video, probe_video
from hstvg.runtime.errors import ConfigError
from hstvg.runtime.index import read_index
from hstvg.runtime.ingest import ingest, preview
from hstvg.runtime.source_curator import CuratorSource

FPS = 10


def add_clip(root, name, *, num_frames=20, meta=True, filtered=False, **fields):
    """A clip and its meta as the curator's ClipWriterStage writes them."""
    folder = root / ("filtered_clips" if filtered else "clips")
    folder.mkdir(parents=True, exist_ok=True)
    (root / "metas" / "v0").mkdir(parents=True, exist_ok=True)
    ramp = np.arange(32 * 32 * 3).reshape(32, 32, 3)
    frames = np.stack([np.roll(ramp, 2 * n, axis=1) for n in range(num_frames)]) % 256
    (folder / f"{name}.mp4").write_bytes(encode_video(frames.astype(np.uint8), FPS))
    record = {
        "span_uuid": name,
        "source_video": f"/raw/{name[:1]}.mp4",
        "duration_span": [0.0, num_frames / FPS],
        "width_source": 1920,
        "height_source": 1080,
        "framerate_source": 30.0,
        "clip_location": f"s3://bucket/clips/{name}.mp4",
        "width": 32,
        "height": 32,
        "framerate": float(FPS),
        "num_frames": num_frames,
        "video_codec": "h264",
        "motion_score": {"global_mean": 0.01, "per_patch_min_256": 0.001},
        "windows": [window(0, num_frames - 1, qwen_caption=f"what {name} shows")],
        "filtered_windows": [],
        "valid": True,
        **fields,
    }
    if meta:
        (root / "metas" / "v0" / f"{name}.json").write_text(json.dumps(record))


def window(first, last, **captions):
    return {"start_frame": first, "end_frame": last, **captions}


def index_clips(root, out, **settings):
    settings = {"val_fraction": 0.0, **settings}
    summary = ingest(CuratorSource(path=str(root), **settings), out, clips_per_shard=256)
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    rows = {row["key"]: row for row in read_index(out).table.to_pylist()}
    return summary, rows, {entry["source"]: entry["reason"] for entry in rejected}


@pytest.mark.ray
def test_curated_clips_become_a_data_set_and_all_else_is_listed(ray_cluster, tmp_path):
    root = tmp_path / "curated"
    add_clip(root, "good-1")
    add_clip(root, "no-meta", meta=False)
    add_clip(root, "no-caption", windows=[window(0, 19)])
    add_clip(root, "no-windows", windows=[], valid=False)
    add_clip(root, "another", span_uuid="good-1")
    add_clip(root, "odd-window", windows=["what"])
    add_clip(root, "filtered-out", filtered=True)
    add_clip(root, "lost")
    (root / "clips" / "lost.mp4").unlink()
    add_clip(root, "cut")
    clip = root / "clips" / "cut.mp4"
    clip.write_bytes(clip.read_bytes()[:500])
    add_clip(root, "torn")
    (root / "metas" / "v0" / "torn.json").write_text('{"windows": ')
    add_clip(root, "dotted.name")

    _, rows, rejected = index_clips(root, tmp_path / "out")
    assert {key: row["caption"] for key, row in rows.items()} == {"good-1": "what good-1 shows"}
    assert {source: reason.split(":")[0] for source, reason in rejected.items()} == {
        "no-meta": "no meta",
        "no-caption": "no caption",
        "no-windows": "invalid",
        "another": "unreadable caption",
        "odd-window": "unreadable caption",
        "filtered-out": "filtered",
        "lost": "missing",
        "cut": "unreadable",
        "torn": "unreadable caption",
        "dotted.name": "unusable name",
    }


@pytest.mark.ray
def test_windows_are_samples_of_their_own_frames(ray_cluster, tmp_path):
    add_clip(
        tmp_path / "in",
        "long",
        num_frames=30,
        windows=[
            window(0, 9, qwen_caption="first"),
            window(10, 19),
            window(20, 29, qwen_caption="last"),
        ],
    )
    _, rows, rejected = index_clips(tmp_path / "in", tmp_path / "out")
    captions = {key: row["caption"] for key, row in rows.items()}
    assert captions == {"long-p000": "first", "long-p001": "last"}
    assert {row["num_frames"] for row in rows.values()} == {10}
    assert rejected == {"long": "no caption: for its frames from 10 on"}
    row = rows["long-p001"]
    whole = (tmp_path / "out" / row["shard"]).read_bytes()
    assert probe_video(whole[row["offset"] : row["offset"] + row["size"]]).num_frames == 10
    facts = json.loads(whole[row["json_offset"] : row["json_offset"] + row["json_size"]])
    assert (facts["start_s"], facts["source"]) == (2.0, "/raw/l.mp4")


CAPTIONS = {
    "qwen_caption": "plain",
    "qwen_lm_enhanced_caption": "enhanced",
    "api_caption": "another",
    "caption_status": "success",
}


@pytest.mark.ray
@pytest.mark.parametrize(
    ("field", "caption"),
    [(None, "enhanced"), ("qwen_caption", "plain"), ("api_caption", "another")],
)
def test_the_caption_field_can_be_chosen(ray_cluster, tmp_path, field, caption):
    add_clip(tmp_path / "in", "a", windows=[window(0, 19, **CAPTIONS)])
    _, rows, _ = index_clips(tmp_path / "in", tmp_path / "out", caption_field=field)
    assert rows["a"]["caption"] == caption


@pytest.mark.ray
def test_clips_of_one_source_video_share_a_split(ray_cluster, tmp_path):
    for name in ("a1", "a2", "b1", "b2"):
        add_clip(tmp_path / "in", name, num_frames=4)
    summary, rows, _ = index_clips(tmp_path / "in", tmp_path / "out", val_fraction=0.05)
    assert summary.splits == {"train": 2, "val": 2}
    assert rows["a1"]["split"] == rows["a2"]["split"] != rows["b1"]["split"]


def test_a_folder_of_another_kind_is_named_and_a_dry_run_counts(tmp_path):
    with pytest.raises(ConfigError, match="metas/v0"):
        CuratorSource(path=str(tmp_path)).items()
    add_clip(tmp_path, "a")
    add_clip(tmp_path, "b", meta=False)
    said = preview(CuratorSource(path=str(tmp_path)), tmp_path / "out", 256)
    assert "the captioned windows of 1 clips" in said
    assert "refused at once: 1 no meta" in said
