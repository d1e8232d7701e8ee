"""The commands of deploy/RUNBOOK.md, read out of it and run under a folder that stands for the root of a host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.deploy.prometheus import ROOT, free_port

PAGE = ROOT / "deploy" / "RUNBOOK.md"
_SECONDS = 100.0


def blocks() -> dict[str, str]:
    """What the page says under each mark: <!-- walk: NAME -->, then a block of shell."""
    found = re.findall(
        r"<!-- walk: ([\w-]+) -->\n```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert len({name for name, _ in found}) == len(found), "a mark stands twice"
    return dict(found)


def script(name: str, root: Path, addresses: dict[str, str]) -> str:
    """The block `name` with its folders under `root`, and with what stands for each of its addresses."""
    text = blocks()[name]
    for written, here in addresses.items():
        text = text.replace(written, here)
    return re.sub(r"(?<![\w.])/(etc|opt|var)/", rf"{root}/\1/", text)


def run(name: str, text: str, root: Path, environment: dict[str, str]) -> str:
    """What a script prints. AssertionError where it fails."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        env=environment,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_SECONDS,
    )
    assert done.returncode == 0, f"{name} ended with {done.returncode}:\n{text}\n{done.stdout}"
    return done.stdout


class Host:
    """A host whose /opt and /var are folders under `root`, and whose addresses are free ports of loopback.

    `said` holds what each block printed. Waits end after 100 seconds with what was printed until then.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._grpc, self._http = free_port(), free_port()
        self._server: subprocess.Popen[bytes] | None = None
        self._walked: list[str] = []
        for folder in ("opt/steelyard", "var/lib/steelyard", "var/backups", "var/log"):
            (root / folder).mkdir(parents=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._grpc}"

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self._http}"

    @property
    def walked(self) -> set[str]:
        return set(self._walked)

    def path(self, path: str) -> Path:
        """Where an absolute path of the page is."""
        return self._root / path.removeprefix("/")

    def run(self, name: str, **variables: object) -> str:
        """What the block `name` prints, with `variables` in its environment. AssertionError where it fails."""
        try:
            return run(name, self._script(name), self._root, self._environment(variables))
        except AssertionError as error:
            raise AssertionError(f"{error}{self.log()}") from None

    def serve(self, **variables: object) -> int:
        """Starts the block `serve`, which serves until it is told to stop; the server's process id."""
        with self.path("/var/log/steelyard.log").open("ab") as log:
            self._server = subprocess.Popen(
                ["bash", "-euc", f"exec {self._script('serve')}"],
                env=self._environment(variables),
                cwd=self._root,
                stdout=log,
                stderr=log,
            )
        return self._server.pid

    def ended(self) -> int:
        """Waits for the server's end; its exit status."""
        assert self._server is not None
        status = self._server.wait(_SECONDS)
        self._server = None
        return status

    def kill(self) -> None:
        """kill -9, where one runs."""
        if self._server is not None:
            self._server.kill()
            self.ended()

    def log(self) -> str:
        path = self.path("/var/log/steelyard.log")
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def lend_packages(self, version: str) -> None:
        """Gives an installed version what it depends on, from the environment of this test: nothing is downloaded."""
        [packages] = self.path(f"/opt/steelyard/{version}").glob("lib/python3*/site-packages")
        (packages / "zz_lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    def _script(self, name: str) -> str:
        self._walked.append(name)
        return script(name, self._root, {"127.0.0.1:7077": self.address, "127.0.0.1:7078": self.http})

    def _environment(self, variables: dict[str, object]) -> dict[str, str]:
        given = {name: str(value) for name, value in variables.items()}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        quiet = {
            "PIP_NO_DEPS": "1",
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_COMPILE": "1",
        }
        # Batches are the same, and no minute goes to compiling for an installation that lives as long.
        quiet["STEELYARD_KERNELS"] = "numpy"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("STEELYARD_")}
        return {**kept, "PATH": path, **quiet, **given}
