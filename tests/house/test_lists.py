"""Facts that are written down twice agree."""

import configparser
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WIRE = ROOT / "client" / "steelyard" / "v1"


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def floor(package: str, requirements: list[str]) -> tuple[int, ...]:
    [found] = [line for line in requirements if re.match(rf"{package}(?![\w-])", line)]
    match = re.search(r">=([\d.]+)", found)
    assert match, f"{found} has no floor"
    return version(match[1])


def test_the_floors_of_the_project_are_those_of_the_generated_code() -> None:
    """Lower, and an import fails for a user; higher, and users are turned away for nothing."""
    grpcio = {
        version(v)
        for p in WIRE.glob("*_pb2_grpc.py")
        for v in re.findall(r"GENERATED_VERSION = '(.+?)'", p.read_text())
    }
    gencode = r"PUBLIC,\s+(\d+),\s+(\d+),\s+(\d+),"
    generated = [*WIRE.glob("*_pb2.py"), *(ROOT / "server" / "steelyard_server" / "disk").rglob("*_pb2.py")]
    protobuf = {tuple(map(int, v)) for p in generated for v in re.findall(gencode, p.read_text())}
    assert grpcio == {floor("grpcio", PROJECT["project"]["dependencies"])}
    assert protobuf == {floor("protobuf", PROJECT["project"]["dependencies"])}
    for package in ("grpcio-health-checking", "grpcio-reflection"):
        assert {floor(package, PROJECT["project"]["optional-dependencies"]["server"])} == grpcio


def test_every_tool_knows_the_same_oldest_python() -> None:
    python = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert PROJECT["tool"]["mypy"]["python_version"] == python
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + python.replace(".", "")
    assert f"Programming Language :: Python :: {python}" in PROJECT["project"]["classifiers"]


def test_the_types_of_tests_are_looked_up_as_those_of_the_packages() -> None:
    tests = configparser.ConfigParser()
    tests.read(ROOT / "tests" / "mypy.ini", encoding="utf-8")
    overrides = [",".join(override["module"]) for override in PROJECT["tool"]["mypy"]["overrides"]]
    assert [name.removeprefix("mypy-") for name in tests.sections() if name != "mypy"] == overrides
    assert tests["mypy"]["mypy_path"] == ":".join(PROJECT["tool"]["mypy"]["mypy_path"])


def test_ruff_leaves_out_what_is_generated_and_nothing_else() -> None:
    left_out = {ROOT / name for name in PROJECT["tool"]["ruff"]["extend-exclude"]}
    assert {p.parent for root in ("client", "server") for p in (ROOT / root).rglob("*_pb2.py")} <= left_out
    assert [
        p
        for folder in left_out
        for p in folder.glob("*.py")
        if p.name != "__init__.py" and "_pb2" not in p.name
    ] == []


def test_every_word_of_the_dev_loop_is_a_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in re.findall(r"^#   make ([a-z-]+)", makefile, flags=re.MULTILINE):
        assert re.search(rf"^{word}:", makefile, flags=re.MULTILINE), word
    assert "make check test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
