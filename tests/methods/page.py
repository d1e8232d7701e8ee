"""Writes METHODS.md from the classes of the methods.

python tests/methods/page.py            writes it
python tests/methods/page.py --check    writes nothing; exit 1 when what is committed differs
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from steelyard_server.catalogue import REQUIRED, Entry, Parameter, entries

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "METHODS.md"
HEAD = """# Methods

Written by `make gen` from the classes themselves; `steelyard methods` prints the same. Not to be edited.

`draw` chooses the ids of a batch, `mix` how much of it each group of examples gets, `weigh` how much each of them
counts. A policy names one of each, with its parameters: `draw={"method": "scored", "alpha": 0.7}`. The formula, its
source and its traps are at the head of each file, and the test shows the method do what its paper claims.
[CONTRIBUTING.md](CONTRIBUTING.md#a-method-of-your-own) says how to add one of your own.
"""


def main() -> int:
    """Exit status: 0 written or fresh, 1 stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare only")
    parser.add_argument("--to", type=Path, default=PAGE, help="another file than METHODS.md")
    wanted = parser.parse_args()
    page = "\n".join(lines(entries()))
    if wanted.check:
        fresh: bool = wanted.to.is_file() and wanted.to.read_text(encoding="utf-8") == page
        if not fresh:
            print(f"{wanted.to.name} differs from the methods: run `make gen` and commit it", file=sys.stderr)
        return 0 if fresh else 1
    wanted.to.write_text(page, encoding="utf-8")
    return 0


def lines(methods: list[Entry]) -> Iterator[str]:
    """The page, line by line."""
    yield HEAD
    yield "| family | name | paper | equation or code | file | test | never reported |"
    yield "|---|---|---|---|---|---|---|"
    for entry in methods:
        name = f"[{entry.name}](#{entry.family}-{entry.name})"
        told = (
            entry.paper,
            entry.where,
            _link(file_of(entry)),
            _link(tested_in(entry)),
            entry.never_reported,
        )
        yield f"| {' | '.join([entry.family, name, *map(_cell, told)])} |"
    for entry in methods:
        yield f"\n## {entry.family} {entry.name}\n"
        yield entry.summary
        if entry.parameters:
            yield "\n| parameter | default | values | |\n|---|---|---|---|"
            yield from (_row(parameter) for parameter in entry.parameters)
    yield ""


def file_of(entry: Entry) -> Path:
    """Where the method is, from the repository's root."""
    return Path(inspect.getfile(entry.method)).resolve().relative_to(ROOT)


def tested_in(entry: Entry) -> Path:
    """Where its test has to be."""
    return Path("tests", "methods", entry.family, f"test_{entry.name}.py")


def _row(parameter: Parameter) -> str:
    default = "required" if parameter.default is REQUIRED else f"`{_json(parameter.default)}`"
    return f"| `{parameter.name}` | {default} | {_cell(parameter.type)} | {_cell(parameter.doc)} |"


def _json(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _link(path: Path) -> str:
    return f"[{path.name}]({path.as_posix()})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
