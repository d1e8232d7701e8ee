"""The text: the source of Python's own standard library, as bytes. Real, heterogeneous, and on every machine."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

# Folders that are not the library itself, or that packagers leave out.
LEFT_OUT = {"test", "tests", "site-packages", "dist-packages", "idlelib", "turtledemo", "__pycache__"}
HELD_OUT_EVERY = 10  # one file in ten is never trained on


def source_files() -> list[Path]:
    """Every module of the standard library that is running, in the same order on every machine."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = ((path.relative_to(root), path) for path in root.rglob("*.py"))
    kept = [(name.as_posix(), path) for name, path in files if not LEFT_OUT & set(name.parts)]
    return [path for _, path in sorted(kept)]


class Blocks(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Blocks of text: example i is the bytes x and, one further on, the bytes y that a model must predict.

    The held-out split consists of other files. Of the blocks of a split the first of every `every` is kept: text from
    all over the library, yet little enough that a short training sees each block several times.
    """

    def __init__(self, split: Literal["train", "held-out"], *, block: int, every: int) -> None:
        files = source_files()
        held_out = files[::HELD_OUT_EVERY]
        chosen = held_out if split == "held-out" else sorted(set(files) - set(held_out))
        text = np.frombuffer(b"".join(path.read_bytes() for path in chosen), np.uint8)
        count = len(text) // (block + 1)
        self.blocks: npt.NDArray[np.uint8] = (
            text[: count * (block + 1)].reshape(count, block + 1)[::every].copy()
        )

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """x and y: int64[block] each."""
        block = torch.from_numpy(self.blocks[index].astype(np.int64))
        return block[:-1], block[1:]

    def fingerprint(self) -> str:
        """Tells one text from another: the library differs between Python versions."""
        return hashlib.blake2b(self.blocks.tobytes(), digest_size=8).hexdigest()
