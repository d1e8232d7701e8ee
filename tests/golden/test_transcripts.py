"""The golden transcripts: small runs, played again, do what is written down; a change of that is told to users."""

import re
import runpy
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHANGELOG = HERE.parents[1] / "CHANGELOG.md"
TRANSCRIBE = runpy.run_path(str(HERE / "transcribe.py"))
REWRITE = "python tests/golden/transcribe.py"


def written() -> dict[str, str]:
    return {file.stem: file.read_text(encoding="utf-8") for file in (HERE / "transcripts").glob("*.txt")}


def announced(changelog: str) -> list[str]:
    """The digests that stand under a WIRE or DISK heading, newest first."""
    parts = re.split(r"^### (\w+)$", changelog, flags=re.MULTILINE)
    sections = zip(parts[1::2], parts[2::2], strict=True)
    return [
        digest
        for name, text in sections
        if name in ("WIRE", "DISK")
        for digest in re.findall(r"transcripts `?([0-9a-f]{16})", text)
    ]


@pytest.mark.parametrize("scenario", TRANSCRIBE["SCENARIOS"], ids=lambda scenario: scenario.__name__)
def test_a_run_does_what_its_transcript_says(scenario) -> None:
    came, name = TRANSCRIBE["transcript"](scenario).splitlines(), scenario.__name__
    expected = written()[name].splitlines()
    for number, (was, now) in enumerate(zip(expected, came, strict=False), 1):
        assert now == was, (
            f"{name}.txt, line {number}: this is another promise than the one that users were given. Where it is "
            f"meant: {REWRITE}, and a line in CHANGELOG.md"
        )
    assert len(came) == len(expected)


def test_every_transcript_has_a_scenario_and_every_scenario_a_transcript() -> None:
    assert set(written()) == {scenario.__name__ for scenario in TRANSCRIBE["SCENARIOS"]}


def test_a_change_of_the_transcripts_is_in_the_changelog() -> None:
    digest = TRANSCRIBE["digest_of"](written())
    newest = announced(CHANGELOG.read_text(encoding="utf-8"))[:1]
    assert newest == [digest], (
        f"the transcripts have changed: the newest that CHANGELOG.md names are {newest}. Say under WIRE or DISK what "
        f"other processes or stored runs meet, and end the line with: transcripts {digest}"
    )


def test_a_digest_counts_under_wire_and_disk_alone() -> None:
    text = (
        "### SERVER\n\n* a; transcripts 00000000000000aa\n\n### DISK\n\n* b; transcripts `00000000000000bb`\n\n"
        "## 0.1\n\n### WIRE\n\n* c; transcripts 00000000000000cc\n"
    )
    assert announced(text) == ["00000000000000bb", "00000000000000cc"]


def test_a_changed_transcript_has_another_digest() -> None:
    texts = written()
    digest_of = TRANSCRIBE["digest_of"]
    name, text = next(iter(texts.items()))
    assert digest_of({**texts, name: text.replace("1", "2", 1)}) != digest_of(texts) == digest_of(dict(texts))
