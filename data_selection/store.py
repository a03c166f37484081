"""Features on disk, in shards that are written as they come and never written twice.

    store = Store(Path("features"), ids, {"model": "...", "seed": 0, "width": 4096})
    for shard in store.missing():                        # after a kill: only what is not there yet
        store.write(shard, features)                     # (rows of the shard, width), of ids[store.rows(shard)]
    features, norms = store.load()                       # (n, width) float16 unit rows, (n,) float32

Rows are kept as unit vectors in float16 (a gradient's size would leave its range) with their norms beside them in
float32; ids.json names them, in order. The folder notes what the features were made from; another model, seed, width
or list of ids is refused, so stale rows are never mixed in. Shards are renamed into place whole.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

SHARD = 512  # rows: at a width of 4,096, 4 MB


class StoreError(ValueError):
    """A problem with what is stored or should be, with its remedy."""


class Store:
    """The features of some rows in a folder.

    Args:
        ids: the rows' names, in order.
        made_from: what decides the features, as JSON values by name. A folder that was made from something else raises
            StoreError.
        shard: rows of a file.
        marks: more of what decides them, which older stores may lack: those that this one lacks are in `unmarked`, and
            not compared.
    """

    def __init__(
        self,
        folder: Path,
        ids: Sequence[str],
        made_from: dict[str, Any],
        shard: int = SHARD,
        marks: dict[str, Any] | None = None,
    ):
        self.folder, self.ids, self.shard = Path(folder), list(ids), shard
        if not self.ids or len(set(self.ids)) < len(self.ids):
            raise StoreError(
                f"{len(self.ids)} ids, {len(set(self.ids))} of them different; give every row a name of its own"
            )
        names = hashlib.sha1(json.dumps(self.ids).encode()).hexdigest()
        self.note = json.loads(json.dumps(made_from)) | {"rows": len(self.ids), "ids": names, "shard": shard}
        self.note |= json.loads(json.dumps(marks or {}))
        self.unmarked: list[str] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_note(self.folder / "store.json", list(marks or {}))
        self.mark = hashlib.sha1(json.dumps(self.note, sort_keys=True).encode()).hexdigest()

    def _check_note(self, path: Path, marks: list[str]) -> None:
        """Writes what the features are made from, or compares it with what is written there."""
        if not path.is_file():
            with _replacing(self.folder / "ids.json") as temporary:
                temporary.write_text(json.dumps(self.ids))
            with _replacing(path) as temporary:
                temporary.write_text(json.dumps(self.note, indent=2))
            return
        try:
            before = json.loads(path.read_text())
        except ValueError as error:
            raise StoreError(f"{path} is broken ({error}); remove {self.folder} to extract anew") from error
        self.unmarked = [key for key in marks if key not in before]
        for key in self.unmarked:
            del self.note[key]
        changed = sorted(key for key in before.keys() | self.note.keys() if before.get(key) != self.note.get(key))
        if changed:
            raise StoreError(
                f"{self.folder} holds features made from something else ({changed[0]}: {before.get(changed[0])!r}, now "
                f"{self.note.get(changed[0])!r}); give another folder, or remove that one"
            )

    def __len__(self) -> int:
        """Number of shards."""
        return -(-len(self.ids) // self.shard)

    def rows(self, shard: int) -> range:
        """Row numbers of a shard."""
        return range(shard * self.shard, min((shard + 1) * self.shard, len(self.ids)))

    def missing(self) -> list[int]:
        """Shards that are not there yet, or were made from something else."""
        return [shard for shard in range(len(self)) if not self._is_whole(shard)]

    def write(self, shard: int, features: Tensor, scale: Tensor | None = None) -> None:
        """Writes a shard, whole or not at all.

        Args:
            features: (rows, width).
            scale: (rows,) by which the kept norms are multiplied: the factor by which a loss's gradient differs from
                the margin's, say.

        Raises:
            StoreError: for a row that has no direction, by its id.
        """
        rows = features.float().cpu()
        norms = rows.norm(dim=1)
        bad = ~torch.isfinite(norms) | (norms == 0)
        if len(rows) != len(self.rows(shard)):
            raise StoreError(f"shard {shard} takes {len(self.rows(shard))} rows, got {len(rows)}")
        if bad.any():
            row = int(bad.nonzero()[0])
            what = (
                "is all zero: its responses are the same, or no layer counts that they reach"
                if norms[row] == 0
                else "is not finite: look for broken weights, or for a row that overflows"
            )
            raise StoreError(f"the gradient of row {self.ids[self.rows(shard)[row]]!r} {what}")
        units = (rows / norms[:, None]).half()
        norms = norms if scale is None else norms * scale.float().cpu()
        with _replacing(self._path(shard)) as temporary:
            save_file({"features": units, "norms": norms}, temporary, {"mark": self.mark})

    def load(self) -> tuple[Tensor, Tensor]:
        """(n, width) float16 unit rows and (n,) float32 norms. Raises StoreError while shards are missing."""
        missing = self.missing()
        if missing:
            raise StoreError(f"{self.folder}: {len(missing)} of {len(self)} shards are missing; extract them first")
        parts = [load_file(self._path(shard)) for shard in range(len(self))]
        widths = sorted({part["features"].shape[1] for part in parts})
        if len(widths) > 1:
            raise StoreError(
                f"{self.folder} holds features of widths {widths}; remove it and extract again, all with one width"
            )
        return torch.cat([part["features"] for part in parts]), torch.cat([part["norms"] for part in parts])

    def _path(self, shard: int) -> Path:
        return self.folder / f"features-{shard:05d}.safetensors"

    def _is_whole(self, shard: int) -> bool:
        """Whether the shard is there and was made from what this store is made from."""
        try:
            with safe_open(self._path(shard), "pt") as file:
                return (file.metadata() or {}).get("mark") == self.mark
        except (OSError, SafetensorError):
            return False


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which is renamed to `path` at the end: a killed process leaves no half of a file there."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")  # several processes may write the same, at the same time
    yield temporary
    os.replace(temporary, path)
