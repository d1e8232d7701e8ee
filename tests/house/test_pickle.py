"""No pickle: what unpickles runs what it is given. What crosses a process or a disk is protobuf or plain arrays."""

import ast

import pytest

from .test_layers import CLIENT, ROOT, SERVER, imports

UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def faults(source: str) -> list[str]:
    """Where `source` could run what it reads, one reason a line."""
    found = [f"line {one.line}: imports {one.module}" for one in imports(source) if one.top in UNPICKLERS]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        allowed = [ast.unparse(word.value) for word in node.keywords if word.arg == "allow_pickle"]
        if called in ("np.load", "numpy.load") and allowed != ["False"]:
            found.append(f"line {node.lineno}: {called} without allow_pickle=False")
        elif allowed and allowed != ["False"]:
            found.append(f"line {node.lineno}: {called} with allow_pickle")
        if called in ("torch.load", "eval", "exec") or called.endswith("read_pickle"):
            found.append(f"line {node.lineno}: calls {called}")
    return found


def test_nothing_of_ours_unpickles() -> None:
    files = [*CLIENT.rglob("*.py"), *SERVER.rglob("*.py")]
    assert len(files) > 200
    assert {
        path.relative_to(ROOT).as_posix(): found
        for path in files
        if (found := faults(path.read_text(encoding="utf-8")))
    } == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', allow_pickle=not False)",
        "import numpy as np\nnp.save('x', y, allow_pickle=True)",
        "import torch\ntorch.load('x')",
        "eval('1')",
        "import shelve",
    ],
)
def test_what_could_is_seen(source: str) -> None:
    assert len(faults(source)) == 1


def test_what_could_not_passes() -> None:
    assert faults("import numpy as np\nnp.load('x', allow_pickle=False)\nnp.save('x', y)") == []
