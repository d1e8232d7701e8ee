"""A unix socket's boundary is the modes of its folder and its file: Python cannot ask gRPC who the peer is."""

from __future__ import annotations

import stat
from pathlib import Path

from steelyard_server.config import ConfigError
from steelyard_server.log import logger

_log = logger(__name__)


def check_folder(listen: str) -> None:
    """Before binding. ConfigError where anyone could put a socket of their own in the place of ours."""
    folder = _path(listen).parent
    if not folder.is_dir():
        return  # Binding says so.
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise ConfigError(
            f"listen = {listen!r}: expected a folder that others may not write, best of mode 0700; {folder} has"
            f" {stat.S_IMODE(mode):04o}"
        )


def tell_who_may_connect(listen: str) -> None:
    """After binding: a warning where others than the owner may open the socket."""
    path = _path(listen)
    folder, socket = path.parent.stat().st_mode, path.stat().st_mode
    for who, enter, write in (
        ("group", stat.S_IXGRP, stat.S_IWGRP),
        ("others", stat.S_IXOTH, stat.S_IWOTH),
    ):
        if folder & enter and socket & write:
            _log.warning(
                "socket_open_to_more_than_its_owner",
                listen=listen,
                who=who,
                folder_mode=f"{stat.S_IMODE(folder):04o}",
                socket_mode=f"{stat.S_IMODE(socket):04o}",
            )


def _path(listen: str) -> Path:
    path = listen.removeprefix("unix:")
    return Path(path.removeprefix("//") if path.startswith("//") else path)
