"""Pictures are made by the methods' own code: what stands in their axes is what the methods say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from steelyard import weigh
from steelyard_server.catalogue import Entry, entries, find
from steelyard_server.cli.verbs import cli
from steelyard_server.plots import default_losses, read_losses
from steelyard_server.plots.picture import _PANELS

FEW = default_losses()[:64]


def panels(entry: Entry, losses: Any, **parameters: Any) -> tuple[list[Any], str]:
    count, draw = _PANELS[entry.family]
    axes = list(Figure().subplots(1, count))
    config = {"method": entry.name, **entry.method.example, **parameters}
    return axes, draw(config, losses, axes)


def points(axes: Any) -> list[tuple[float, float]]:
    """Of all lines but the one that marks 1."""
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) and line.get_color() != "0.7"]
    return [point for line in lines for point in zip(line.get_xdata(), line.get_ydata(), strict=True)]


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: f"{entry.family}-{entry.name}")
def test_every_method_can_be_pictured(entry: Entry) -> None:
    axes, told = panels(entry, FEW)
    assert told
    for one in axes:
        values = np.array([point for line in one.get_lines() for point in line.get_xydata()])
        assert len(values) + len(one.patches), f"{one.get_title()} is empty"
        assert np.isfinite(values.astype(np.float64)).all()


def test_weights_in_the_picture_are_those_of_the_rule() -> None:
    [against, histogram], _ = panels(find("linupper")[0], FEW, r=0.4)
    expected = weigh.weights(FEW, {"method": "linupper", "r": 0.4})
    assert sorted(points(against)) == sorted(zip(FEW, expected, strict=True))
    came = sum(bar.get_height() for bar in histogram.containers[0])
    assert came == len(FEW)


def test_probabilities_in_the_picture_are_those_of_the_draw() -> None:
    [chances, counts, order], _ = panels(find("scored", "draw")[0], FEW, sampling="independent")
    for loss, chance in points(chances):
        assert chance == pytest.approx(loss / FEW.sum() * len(FEW), rel=1e-3)
    assert sum(times for _, times in points(counts)) == 4 * len(FEW)
    assert len(points(order)) == 4 * len(FEW)


def test_masses_in_the_picture_are_those_of_the_mix() -> None:
    [masses, _], _ = panels(find("static", "mix")[0], FEW, shares=[1, 2, 5])
    for line, share in zip(masses.get_lines(), (0.125, 0.25, 0.625), strict=True):
        assert set(line.get_ydata()) == {share}


def test_masses_in_the_picture_are_of_what_the_mix_keeps() -> None:
    [masses, _], told = panels(find("rank_aggregate_quota", "mix")[0], FEW, rankings=["quality"], k=3)
    kept = [int(number) for number in told.split("keeps [")[1].split("]")[0].split(", ")]
    assert sum(kept) == 3
    for line, count in zip(masses.get_lines(), kept, strict=True):
        assert set(line.get_ydata()) == {count / 3}


def test_the_losses_pictured_by_default_are_as_stated() -> None:
    losses = default_losses()
    assert len(losses) == 1024
    assert np.median(losses) == pytest.approx(2.0, rel=0.05)
    assert 0.01 < np.mean(losses > 6.7) < 0.03
    assert (losses == default_losses()).all()


def test_losses_are_read_from_text_and_from_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", FEW)
    np.savetxt(tmp_path / "l.txt", [*FEW, np.nan], fmt="%.9g")
    assert (read_losses(tmp_path / "l.npy") == FEW).all()
    assert (read_losses(tmp_path / "l.txt") == FEW).all()
    (tmp_path / "bad.txt").write_text("loss\n")
    for bad, fault in (
        ("bad.txt", "expected losses, one a line"),
        ("few.txt", "at least 8 finite losses, got 2"),
    ):
        (tmp_path / "few.txt").write_text("1\n2\n")
        with pytest.raises(ValueError, match=fault):
            read_losses(tmp_path / bad)


def steelyard(*words: str) -> Any:
    return CliRunner().invoke(cli, ["methods", *words])


@pytest.mark.parametrize("name", ["linupper", "shuffle", "temperature"])
def test_the_command_draws_a_picture(name: str, tmp_path: Path) -> None:
    np.savetxt(tmp_path / "losses.txt", FEW)
    done = steelyard(name, "--plot", str(tmp_path / "found.png"), "--losses", str(tmp_path / "losses.txt"))
    assert (done.exit_code, done.stderr) == (0, "")
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plot", "f.png"], "--plot: expected the name of a method"),
        (["linupper", "--set", "r=1"], "--losses and --set are for --plot"),
        (["linupper", "--plot", "f.png", "--set", "r"], "expected parameter=value, got 'r'"),
        (["linupper", "--plot", "f.png", "--set", "r=-1"], "linupper.r: expected a number"),
        (["scored", "--plot", "f.png", "--set", "alpha=-1"], "draw: alpha: Input should be greater"),
        (["temperature", "--plot", "f.png", "--set", "temperature=0"], "mix: temperature: Input should be"),
        (["static", "--plot", "f.png", "--set", "shares=[1]"], "each of the 3 groups"),
        (["linupper", "--plot", "f.nonsense"], "nonsense"),
        (["linupper", "--plot", "f."], "expected a file whose name ends in .png, .svg or .pdf"),
        (["linupper", "--plot", "f.png", "--set", 'method="upper"'], "a parameter of linupper, got 'method'"),
        (["linupper", "--plot", "f.png", "--losses", "/no/such/file"], "/no/such/file"),
    ],
)
def test_what_cannot_be_pictured_is_told(words: list[str], message: str, tmp_path: Path) -> None:
    done = steelyard(*(str(tmp_path / word) if word.startswith("f.") else word for word in words))
    assert done.exit_code in (1, 2)
    assert isinstance(done.exception, SystemExit | OSError), done.exception
    told = f"{done.stderr} {done.exception}"
    assert message in " ".join(told.replace("│", " ").split())


def test_without_matplotlib_the_command_says_what_to_install(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        f"sys.argv = ['steelyard', 'methods', 'linupper', '--plot', {str(tmp_path / 'f.png')!r}]\n"
        "from steelyard_server.cli.main import app; app()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "pip install 'steelyard[plot]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
