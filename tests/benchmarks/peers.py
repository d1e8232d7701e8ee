"""Others that sample by priority, each in a virtual environment of its own: python tests/benchmarks/peers.py [NAME ...]

Every one is optional. What could not be installed is remembered with the reason, and the tables say so.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".cache" / "peers"
_INSTALL_SECONDS = 1800


@dataclass(frozen=True, slots=True)
class Peer:
    requirements: Sequence[str]
    imports: str
    """What must be importable, compiled parts included."""
    python: str | None = None
    """The version that it has wheels for, "3.11"; None: any."""


PEERS: Mapping[str, Peer] = {
    "cpprb": Peer(["cpprb==11.0.0"], "cpprb"),
    # Its compiled trees load beside this torch alone. From PyPI that one brings CUDA, 5 GB; PIP_EXTRA_INDEX_URL may
    # name an index that has it without.
    "torchrl": Peer(["torchrl==0.14.1", "torch==2.15.0"], "torchrl._torchrl"),
    "reverb": Peer(["dm-reverb==0.14.0", "tensorflow==2.15.1"], "reverb", python="3.11"),
}


def python_of(folder: Path | None, name: str) -> tuple[str, str]:
    """(its interpreter, "") where `name` is installed as PEERS says, else ("", why not)."""
    if folder is None:
        return "", f"{name}: not asked for"
    ready, failed = folder / name / "ready", folder / f"{name}.failed"
    if ready.exists() and ready.read_text().split() == list(PEERS[name].requirements):
        return str(folder / name / "bin" / "python"), ""
    if failed.exists():
        return "", f"{name}: could not be installed: {failed.read_text().strip()}"
    return "", f"{name}: not installed (make peers)"


def install(folder: Path, name: str) -> str:
    """Makes the environment of `name` unless it is there; the reason where that fails, else ""."""
    if python_of(folder, name)[0]:
        return ""
    peer, place, failed = PEERS[name], folder / name, folder / f"{name}.failed"
    shutil.rmtree(place, ignore_errors=True)
    failed.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        python = _interpreter(peer)
        _run([python, "-m", "venv", str(place)])
        own = str(place / "bin" / "python")
        pip = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--upgrade", "pip>=25.1"])
        _run([*pip, *peer.requirements])
        _run([own, "-c", f"import {'torch, ' if name == 'torchrl' else ''}{peer.imports}"])
    except (OSError, subprocess.SubprocessError, LookupError) as error:
        why = _why(error)
        failed.write_text(why + "\n")
        shutil.rmtree(place, ignore_errors=True)
        return why
    (place / "ready").write_text("\n".join(peer.requirements) + "\n")
    return ""


def _interpreter(peer: Peer) -> str:
    if peer.python in (None, f"{sys.version_info.major}.{sys.version_info.minor}"):
        return sys.executable
    found = shutil.which(f"python{peer.python}")
    if found is None:
        raise LookupError(
            f"it has wheels for Python {peer.python}, and no python{peer.python} is on the PATH"
        )
    return found


def _run(command: Sequence[str]) -> None:
    subprocess.run(
        command,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_INSTALL_SECONDS,
    )


def _why(error: Exception) -> str:
    """One line: the last that the failed command wrote."""
    lines = (
        (error.stdout or "").strip().splitlines() if isinstance(error, subprocess.CalledProcessError) else []
    )
    return lines[-1] if lines else str(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)}; all by default")
    parser.add_argument("--to", type=Path, default=FOLDER)
    args = parser.parse_args()
    for name in args.names:
        if name not in PEERS:
            parser.error(f"expected names of {', '.join(PEERS)}, got {name!r}")
    for name in args.names or PEERS:
        print(f"{name}: {', '.join(PEERS[name].requirements)} ...", flush=True)
        why = install(args.to, name)
        print(f"{name}: {f'left out: {why}' if why else 'ready'}", flush=True)


if __name__ == "__main__":
    main()
