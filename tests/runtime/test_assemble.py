import json

import pytest
import torch
from safetensors.torch import save_file

from hstvg.runtime.assemble import open_run
from hstvg.runtime.errors import ConfigError

CONFIG = {
    "format": 1,
    "stage": "tokenizer",
    "step": 1,
    "window": {"num_frames": 8, "fps": 8.0, "height": 16, "width": 16},
    "tokenizer": {
        "_target_": "hstvg.tokenizer.video_tokenizer.VideoTokenizer",
        "clip_size": [8, 16, 16],
        "strides": [2, 4, 4],
    },
    "generator": None,
}


@pytest.mark.parametrize("change", [{}, {"of_another_version": 1}])
def test_a_model_of_another_version_is_named(tmp_path, change):
    """Other weights, or other arguments."""
    config = {**CONFIG, "tokenizer": {**CONFIG["tokenizer"], **change}}
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text(json.dumps(config))
    save_file({"tokenizer.old": torch.zeros(1)}, tmp_path / "export" / "model.safetensors")
    with pytest.raises(ConfigError, match="train the run again with this version"):
        open_run(tmp_path)
