"""Writes what in the chart follows from something else, or with --check says what is not as it would write it.

    python deploy/chart/generate.py [--check]

values.schema.json: the settings under `config`, from those of the server. README.md: the table of values, from
values.yaml and its comments.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steelyard_server.config import Settings

CHART = Path(__file__).parent / "steelyard"
# What the chart sets from values of its own, because objects around the server must agree with it.
OWN = re.compile(
    r"data_dir|listen|http|http_anywhere|health|port_file|insecure|grace_seconds|tls_.*|access|backup_(to|keep)|log_file"
)
BEGIN, END = "<!-- values: begin -->\n", "<!-- values: end -->\n"


def settings() -> dict[str, Any]:
    """The schema of `config`: every setting of the server that the chart does not set itself."""
    found = Settings.model_json_schema()["properties"]
    return {name: _setting(name, schema) for name, schema in found.items() if not OWN.fullmatch(name)}


def _setting(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in schema.items() if key not in ("title", "default", "description")}
    text = " ".join(str(schema.get("description", "")).split())
    if name.endswith("_bytes"):
        # A number, or one with a unit.
        kept = {"anyOf": [kept, {"type": "string", "pattern": r"^[0-9.]+ *[kKMGTP]?i?[bB]?$"}]}
    return {"description": text, **kept}


def schema() -> str:
    path = CHART / "values.schema.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    whole["properties"]["config"]["properties"] = settings()
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def values(text: str) -> Iterator[tuple[str, str, str]]:
    """Key, default and comment of every value that is no group of others. ValueError: one has no comment."""
    path: list[tuple[int, str]] = []
    comment = ""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if match := re.fullmatch(r" *# (.*)", line):
            comment = f"{comment} {match[1]}".strip()
        elif match := re.fullmatch(r"( *)([\w./-]+):(?: (.*))?", line):
            indent, key, default = len(match[1]), match[2], match[3]
            path = [step for step in path if step[0] < indent]
            path.append((indent, key))
            group = default is None
            if not group and comment:
                yield ".".join(name for _, name in path), default, comment
            elif group and _holds_what_it_says(lines[number + 1], indent):
                yield ".".join(name for _, name in path), _inline(lines, number, indent), comment
            elif not group and len(path) == 1:
                raise ValueError(
                    f"values.yaml, line {number + 1}: expected a comment above {key!r}, got none"
                )
            comment = ""
        else:
            comment = ""


def _holds_what_it_says(line: str, indent: int) -> bool:
    """Whether a group is one value, a map as Kubernetes has it, and not values of the chart's."""
    return not line.lstrip().startswith("#") and len(line) - len(line.lstrip()) > indent


def _inline(lines: list[str], number: int, indent: int) -> str:
    held = []
    for line in lines[number + 1 :]:
        if len(line) - len(line.lstrip()) <= indent:
            break
        held.append(line.strip())
    return "{" + ", ".join(held) + "}"


def readme() -> str:
    path = CHART / "README.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    rows = [f"| `{key}` | `{default}` | {comment} |\n" for key, default, comment in values(text)]
    return before + BEGIN + "| value | default | meaning |\n|---|---|---|\n" + "".join(rows) + END + after


def main() -> int:
    fresh = {CHART / "values.schema.json": schema(), CHART / "README.md": readme()}
    stale = [path for path, text in fresh.items() if path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path} is not what follows from the settings and values.yaml: make gen", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(fresh[path], encoding="utf-8")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
