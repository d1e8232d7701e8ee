"""What may import what: dependencies run one way, the core is pure, the client knows nothing of the server."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "client" / "steelyard"
SERVER = ROOT / "server" / "steelyard_server"
GENERATED = (CLIENT / "v1", SERVER / "disk" / "v1")

# Lowest first: a part may import itself and those before it. `history` and `policies` do not meet.
LAYERS = [
    "log",
    "allocator",
    "disk",
    "core",
    "kernel_cache",
    "kernels_at_start",
    "policies",
    "methods",
    "plugins",
    "catalogue",
    "history",
    "config",
    "runs",
    "security",
    "keeping",
    "plots",
    "observing",
    "service",
    "server",
    "cli",
    "__main__",
]
APART = {("history", "policies")}
PURE = ("core", "policies")
# Of the pure parts: where generators are made, and where machine code is.
RANDOMNESS = SERVER / "core" / "kernels" / "plain" / "words.py"
COMPILED = SERVER / "core" / "kernels" / "compiled"

# What the pure parts may import besides themselves. Nothing here has a clock, a thread, a file or a chance.
PURE_MODULES = {
    *("__future__", "abc", "bisect", "collections", "contextlib", "copy", "dataclasses", "difflib", "enum"),
    *("fractions", "functools", "hashlib", "heapq", "itertools", "json", "math", "numbers", "operator", "re"),
    *("struct", "types", "typing", "numpy", "pydantic", "steelyard.split", "steelyard.weigh"),
    *("steelyard.source", "steelyard.registry"),
}
PURE_BUILTINS_REFUSED = {"open", "print", "input", "breakpoint", "eval", "exec", "__import__"}
# Their last bit differs between processors or libraries, and one bit may draw another batch: core.exact has the same
# on every machine.
INEXACT = {
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "pow", "power", "float_power", "logaddexp"),
    *("sin", "cos", "tan", "tanh", "dot", "vdot", "inner", "matmul", "einsum", "tensordot"),
}
NUMPY_FILES_REFUSED = {"load", "save", "savez", "fromfile", "memmap", "loadtxt", "savetxt", "genfromtxt"}

# What of the client the daemon may use; the command line, a client itself, may use all of it.
SHARED = {
    *("steelyard.wire", "steelyard.split", "steelyard.weigh", "steelyard.source", "steelyard.errors"),
    *("steelyard.registry", "steelyard.plugins", "steelyard.v1"),
}
CLIENT_THIRD_PARTY = {"grpc", "google", "numpy"}


@dataclass(frozen=True)
class Import:
    """One imported name: `module` is dotted and absolute; `name` what is taken from it, if anything is."""

    module: str
    name: str | None
    line: int
    lazy: bool
    for_types: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    def within(self, *modules: str) -> bool:
        """Whether this is one of `modules`, or something inside one."""
        names = {self.module, f"{self.module}.{self.name}"}
        return any(name == module or name.startswith(module + ".") for name in names for module in modules)


def imports(source: str, package: str = "") -> Iterator[Import]:
    """Every import of `source`, in functions and under TYPE_CHECKING too; `package` resolves the relative ones."""

    def walk(node: ast.AST, lazy: bool, for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, None, child.lineno, lazy, for_types)
            elif isinstance(child, ast.ImportFrom):
                parts = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
                module = ".".join([*parts, *([child.module] if child.module else [])])
                for alias in child.names:
                    yield Import(module, alias.name, child.lineno, lazy, for_types)
            else:
                typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from walk(child, lazy or inside, for_types or typing_only)

    yield from walk(ast.parse(source), lazy=False, for_types=False)


def impurities(
    source: str, package: str, *, makes_randomness: bool = False, compiles: bool = False
) -> list[str]:
    """Why `source` is not pure, one reason a line; empty when it is."""
    allowed = PURE_MODULES | ({"numba", "llvmlite"} if compiles else set())
    parts = tuple(f"steelyard_server.{part}" for part in PURE)
    found = [
        f"line {item.line}: imports {item.module}"
        for item in imports(source, package)
        if not item.within(*allowed, *parts) or (item.within("numpy.random") and not makes_randomness)
    ]
    refused_of_numpy = NUMPY_FILES_REFUSED if makes_randomness else {*NUMPY_FILES_REFUSED, "random"}
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in PURE_BUILTINS_REFUSED:
                found.append(f"line {node.lineno}: calls {name}()")
            case ast.Attribute(value=ast.Name(id="np" | "numpy"), attr=name) if name in refused_of_numpy:
                found.append(f"line {node.lineno}: uses np.{name}")
            case ast.Attribute(value=ast.Name(id="np" | "numpy" | "math" as module), attr=name) if (
                name in INEXACT
            ):
                found.append(f"line {node.lineno}: uses {module}.{name}, which differs between machines")
            case ast.BinOp(op=ast.MatMult()):
                found.append(f"line {node.lineno}: uses @, which differs between machines")
    return found


def wrong_way(source: str, package: str, part: str) -> list[str]:
    """The imports of a module of the server's `part` that its layer forbids."""
    below = {name for name in LAYERS[: LAYERS.index(part) + 1] if (part, name) not in APART}
    found = []
    for item in imports(source, package):
        if item.within("steelyard_server") and not item.within(
            *(f"steelyard_server.{name}" for name in below)
        ):
            found.append(f"line {item.line}: {part} imports {item.module} {item.name or ''}".rstrip())
        if item.top == "steelyard" and part not in ("cli", "__main__") and not item.within(*SHARED):
            found.append(f"line {item.line}: {part} imports {item.module} {item.name or ''} of the client")
    return found


def foreign_to_client(source: str, package: str, module: str) -> list[str]:
    """The imports that a module of the client may not have: the server's, torch's, and any third party's."""
    embeds = module in ("local", "testing")
    # Loaded by the fixture alone, where pytest runs: it tries draw and mix methods by the server's own fold.
    tries = f"{package}.".startswith("steelyard.testing.contract.")
    found = []
    for item in imports(source, package):
        if item.top in ("steelyard_server", "pydantic"):
            allowed = tries or (embeds and (item.lazy or item.for_types))
        elif item.top in ("pytest", "hypothesis"):
            allowed = tries
        elif item.top == "torch":
            allowed = module.startswith("torch")
        else:
            allowed = item.top in sys.stdlib_module_names | CLIENT_THIRD_PARTY | {"steelyard"}
        if not allowed:
            found.append(f"line {item.line}: imports {item.module}")
    return found


def modules(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*.py") if not any(p.is_relative_to(g) for g in GENERATED))


def package_of(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root.parent).parts[:-1])


def part_of(path: Path) -> str:
    return path.relative_to(SERVER).parts[0].removesuffix(".py")


def shown(path: Path, faults: list[str]) -> list[str]:
    return [f"{path.relative_to(ROOT)}: {fault}" for fault in faults]


def test_core_and_policies_are_pure() -> None:
    files = [path for part in PURE for path in modules(SERVER / part)]
    assert len(files) > len(PURE)
    assert [
        fault
        for path in files
        for fault in shown(
            path,
            impurities(
                path.read_text(encoding="utf-8"),
                package_of(path, SERVER),
                makes_randomness=path == RANDOMNESS,
                compiles=path.is_relative_to(COMPILED),
            ),
        )
    ] == []


def test_the_server_depends_one_way() -> None:
    files = [path for path in modules(SERVER) if path != SERVER / "__init__.py"]
    assert {part_of(path) for path in files} <= set(LAYERS), "a new part of the server has no layer yet"
    assert [
        fault
        for path in files
        for fault in shown(
            path, wrong_way(path.read_text(encoding="utf-8"), package_of(path, SERVER), part_of(path))
        )
    ] == []


def test_the_store_alone_imports_lmdb() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in [*modules(SERVER), *modules(CLIENT)]
        if any(item.top == "lmdb" for item in imports(path.read_text(encoding="utf-8")))
    }
    assert users == {f"server/steelyard_server/history/{name}.py" for name in ("store", "pieces")}


def test_the_client_knows_nothing_of_the_server_nor_torch_of_anything_but_its_module() -> None:
    assert [
        fault
        for path in modules(CLIENT)
        for fault in shown(
            path,
            foreign_to_client(
                path.read_text(encoding="utf-8"),
                package_of(path, CLIENT),
                path.relative_to(CLIENT).parts[0].removesuffix(".py"),
            ),
        )
    ] == []


def test_importing_the_client_loads_no_extra() -> None:
    script = "import sys, steelyard; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(ast.literal_eval(done.stdout))
    assert "steelyard" in loaded
    assert loaded & {"torch", "steelyard_server", "pydantic", "lmdb", "typer", "scipy"} == set()


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import time", "imports time"),
        ("import os.path as p", "imports os.path"),
        ("from threading import Lock", "imports threading"),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import grpc", "imports grpc"),
        ("def f():\n    import lmdb", "imports lmdb"),
        ("class C:\n    async def f(self):\n        from asyncio import sleep", "imports asyncio"),
        ("from ..history import store", "imports steelyard_server.history"),
        ("from steelyard import connect", "imports steelyard"),
        ("from numpy import random", "imports numpy"),
        ("from numpy.random import default_rng", "imports numpy.random"),
        ("import numpy as np\nx = np.random.default_rng()", "uses np.random"),
        ("import numpy as np\nnp.save('x', 1)", "uses np.save"),
        ("import numpy as np\nx = np.exp(1.0)", "uses np.exp, which differs between machines"),
        ("import math\nx = math.log(2.0)", "uses math.log, which differs between machines"),
        ("x = y @ z", "uses @, which differs between machines"),
        ("open('x')", "calls open()"),
        ("from numba import njit", "imports numba"),
    ],
)
def test_an_impurity_is_seen(source: str, fault: str) -> None:
    assert [line.partition(": ")[2] for line in impurities(source, "steelyard_server.core")] == [fault]


def test_what_is_pure_passes() -> None:
    source = (
        "import math\nimport numpy as np\nimport numpy.typing as npt\nfrom . import tree\n"
        "from steelyard_server.core.events import BatchDrawn\nfrom steelyard.weigh import weights\n"
        "from steelyard import split\n"
    )
    assert impurities(source, "steelyard_server.core") == []
    assert (
        impurities("import numpy as np\nnp.random.Philox(1)", "steelyard_server.core", makes_randomness=True)
        == []
    )
    assert impurities("from numba import njit", "steelyard_server.core", compiles=True) == []


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("core", "from steelyard_server.policies import policy"),
        ("history", "import steelyard_server.runs.state"),
        ("history", "from steelyard_server import policies"),
        ("runs", "def f():\n    from ..service import errors"),
        ("service", "from steelyard_server.server import serve"),
        ("runs", "import steelyard"),
        ("service", "from steelyard.session import Session"),
        ("service", "from steelyard import connect"),
    ],
)
def test_an_import_the_wrong_way_is_seen(part: str, source: str) -> None:
    assert len(wrong_way(source, f"steelyard_server.{part}", part)) == 1


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("cli", "from steelyard_server.server import serve\nimport steelyard"),
        ("runs", "from steelyard_server.history.store import Store\nfrom steelyard import split, weigh"),
        ("service", "from steelyard.v1 import runs_pb2\nfrom steelyard_server import core"),
    ],
)
def test_an_import_the_right_way_passes(part: str, source: str) -> None:
    assert wrong_way(source, f"steelyard_server.{part}", part) == []


@pytest.mark.parametrize(
    ("module", "source", "allowed"),
    [
        ("session", "def f():\n    import steelyard_server", False),
        ("local", "import steelyard_server.server", False),
        ("local", "def f():\n    from steelyard_server.server import serve", True),
        ("local", "import pydantic", False),
        ("testing", "def f():\n    from steelyard_server.server import serve", True),
        ("testing", "from steelyard_server.server import serve", False),
        ("testing", "import pytest", False),
        ("weigh", "def f():\n    import torch", False),
        ("torch", "import torch", True),
        ("wire", "import scipy", False),
        (
            "wire",
            "import numpy, grpc, struct\nfrom google.protobuf import struct_pb2\nfrom . import split",
            True,
        ),
    ],
)
def test_what_the_client_may_import_is_told_from_what_it_may_not(
    module: str, source: str, allowed: bool
) -> None:
    assert (foreign_to_client(source, "steelyard", module) == []) is allowed
