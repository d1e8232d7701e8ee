"""Generates the Python of the wire and of the disk from the protos beside this file.

    python proto/generate.py            writes client/steelyard/v1 and server/steelyard_server/disk/v1
    python proto/generate.py --check    writes nothing; exit 1 and the list when what is committed differs

Runs under the tools of dependency group `gen`. Generated files belong to this script: what no proto makes any
more is removed.
"""

import argparse
import importlib.resources
import subprocess
import sys
import tempfile
from pathlib import Path

PROTO = Path(__file__).resolve().parent
ROOT = PROTO.parent

# First folder under proto/ → the source root that its package lives in.
SOURCE_ROOTS = {"steelyard": "client", "steelyard_server": "server"}
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")
INIT = '"""Generated from proto/{package} by `make gen`. Not to be edited."""\n'


def main() -> int:
    """Exit status: 0 done or fresh, 1 stale, protoc's own where it fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only")
    check: bool = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        fresh = generate(Path(scratch))
    stale = sorted(path for path in committed() if path not in fresh)
    changed = sorted(path for path, data in fresh.items() if read(ROOT / path) != data)
    for path in [*stale, *changed]:
        print(f"{'stale' if check else 'removed' if path in stale else 'wrote'} {path}")
    if check:
        if stale or changed:
            print(
                "generated code differs from proto/: run `make gen` and commit what it writes",
                file=sys.stderr,
            )
        return 1 if stale or changed else 0
    for path in stale:
        (ROOT / path).unlink()
    for path in changed:
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_bytes(fresh[path])
    return 0


def generate(scratch: Path) -> dict[Path, bytes]:
    """What the protos make: path relative to the repository → content."""
    for name, source_root in SOURCE_ROOTS.items():
        protos = sorted(str(path.relative_to(PROTO)) for path in (PROTO / name).rglob("*.proto"))
        if protos:
            protoc(protos, scratch / source_root)
            for package in sorted({Path(proto).parent for proto in protos}):
                init = scratch / source_root / package / "__init__.py"
                init.write_text(INIT.format(package=package.as_posix()), encoding="utf-8")
    return {path.relative_to(scratch): path.read_bytes() for path in scratch.rglob("*.py*") if path.is_file()}


def protoc(protos: list[str], out: Path) -> None:
    """Messages, stubs and the types of both; *_pb2_grpc files only where a proto has a service."""
    out.mkdir(parents=True, exist_ok=True)
    plugin = Path(sys.executable).parent / "protoc-gen-mypy_grpc"
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    command = [sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", f"-I{PROTO}", f"-I{well_known}"]
    command += [
        f"--python_out={out}",
        f"--pyi_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_grpc_out=quiet:{out}",
    ]
    command += [f"--plugin=protoc-gen-mypy_grpc={plugin}", *protos]
    finished = subprocess.run(command, check=False)
    if finished.returncode:
        sys.exit(finished.returncode)
    for path in out.rglob("*_pb2_grpc.py"):
        if "Servicer" not in path.read_text(encoding="utf-8"):
            path.unlink()
            path.with_suffix(".pyi").unlink(missing_ok=True)


def committed() -> list[Path]:
    """Generated files in the tree, relative to the repository."""
    return [
        path.relative_to(ROOT)
        for source_root in SOURCE_ROOTS.values()
        for pattern in GENERATED
        for path in (ROOT / source_root).rglob(pattern)
    ]


def read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
