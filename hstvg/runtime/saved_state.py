"""The training state on disk: whole tensors by name, dealt out over one file per rank.

No tensor is cut, and none belongs to a rank or to an engine: any number of workers of any engine
reads what it holds of each. safetensors alone, so that loading a checkpoint runs no code of it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hstvg.runtime.checkpoint import FORMAT, Group, read_manifest
from hstvg.runtime.errors import CommandError


def write_state(folder: Path, tensors: Iterable[tuple[str, Tensor]], group: Group) -> None:
    """Write this rank's share of the tensors, which all ranks go through in the same order.

    Each goes to the rank that has least so far, and no other keeps it: a rank needs the memory of
    its share and of one tensor.
    """
    dealt = [0] * group.world_size
    share: dict[str, Tensor] = {}
    for name, tensor in tensors:
        owner = dealt.index(min(dealt))
        dealt[owner] += tensor.nbytes
        if owner == group.rank:
            share[name] = tensor.detach().cpu().contiguous()
    save_file(share, folder / f"state_rank{group.rank:05d}.safetensors")


class SavedState:
    """A checkpoint to go on from: its manifest, and every tensor by name.

    Raises:
        CommandError: it was written by another version of the program.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Mapping[str, Any] = read_manifest(folder)
        if self.manifest["format"] != FORMAT:
            raise CommandError(
                f"{folder} is of format {self.manifest['format']}, and this version goes on from "
                f"format {FORMAT} alone; give another run.name"
            )
        files = [safe_open(file, "pt") for file in sorted(folder.glob("state_rank*.safetensors"))]
        self._holder = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def read(self, name: str) -> Tensor:
        """A whole tensor, on the CPU; of what is not used, nothing is read from disk.

        Raises:
            CommandError: the checkpoint has no such tensor.
        """
        if name not in self._holder:
            raise CommandError(
                f"{self.folder} holds no {name}: it is of another model; give the run the settings "
                "it had, or another run.name"
            )
        return self._holder[name].get_tensor(name)
