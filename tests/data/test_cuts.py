import sys

import numpy as np
import pytest
from footage import write

from hstvg.data.cuts import scene_cuts
from hstvg.data.shapes import render, sample_scene
from hstvg.data.transcode import Form, transcode
from hstvg.data.video import UnreadableVideo, encode_video

FPS = 12.0


def shot(seed, num_frames=18):
    return render(sample_scene(seed), num_frames=num_frames, fps=FPS, height=48, width=64).pixels


def test_without_scenedetect_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(ValueError, match="scenedetect") as refused:
        scene_cuts(encode_video(shot(0), FPS))
    assert "pip install 'hstvg[cuts]'" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not isinstance(refused.value, UnreadableVideo)


class TestWithSceneDetect:
    @pytest.fixture(autouse=True)
    def scenedetect(self):
        pytest.importorskip("scenedetect")

    def test_shots_are_told_apart(self):
        video = encode_video(np.concatenate([shot(seed) for seed in range(3)]), FPS)
        assert scene_cuts(video) == [(0.0, 1.5), (1.5, 3.0), (3.0, 4.5)]

    def test_one_shot_stays_whole(self):
        assert scene_cuts(encode_video(shot(3, 36), FPS)) == [(0.0, 3.0)]
        assert len(scene_cuts(encode_video(shot(3, 1), FPS))) == 1

    def test_short_shots_stay_with_the_one_before(self):
        parts = [shot(0), shot(1, 5), shot(2)]
        video = encode_video(np.concatenate(parts), FPS)
        assert len(scene_cuts(video, shortest_s=0.2)) == 3
        assert len(scene_cuts(video, shortest_s=1.0)) == 2

    @pytest.mark.parametrize("suffix", ["mp4", "ts", "avi", "webm"])
    def test_each_shot_is_cut_out_whole(self, tmp_path, suffix):
        shots = [shot(seed) for seed in range(3)]
        path = tmp_path / f"film.{suffix}"
        codec = "libvpx-vp9" if suffix == "webm" else "libx264"
        write(path, list(np.concatenate(shots)), codec)
        cuts = scene_cuts(path)
        assert len(cuts) == 3
        for start_s, end_s in cuts:
            _, info = transcode(path, Form(), start_s=start_s, end_s=end_s)
            assert info.num_frames == 18

    def test_what_is_no_video_has_no_shots(self):
        with pytest.raises(UnreadableVideo):
            scene_cuts(b"no video")
