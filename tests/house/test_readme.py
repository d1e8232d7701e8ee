"""The README's code runs as printed, with a small model and a real server."""

import re
from pathlib import Path

import numpy as np
import pytest

from steelyard.testing import ServerProcess

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def names(tmp_path):
    """What the README takes as given."""
    torch = pytest.importorskip("torch")

    class Text:
        def __len__(self):
            return 3000

        def __getitem__(self, example):
            return torch.full((4,), example / 3000), example % 2

    with ServerProcess(tmp_path) as process:
        yield {
            "address": process.address,
            "ds": Text(),
            "model": torch.nn.Linear(4, 2),
            "criterion": torch.nn.CrossEntropyLoss(reduction="none"),
            "resuming": False,
            "losses": np.linspace(0.5, 2.0, 256),
            "domains": np.arange(3000) % 3,
            "reference_losses": np.full(3000, 1.5),
        }


def run(block, names):
    # Its address is this server's, and its loader has no more workers than a small machine has cores.
    code = block.replace("127.0.0.1:7077", names["address"]).replace("num_workers=4", "num_workers=1")
    exec(code.replace("steps=1000", "steps=5"), names)


def test_the_code_of_the_readme_runs_as_printed(names):
    trainer, session, scored, afterwards, mixed = BLOCKS
    run(trainer, names)
    assert names["checkpoint"]["sampler"]["step"] == 5
    run(trainer, {**names, "resuming": True})
    run(session, names)
    assert names["batch"].step == 10
    assert names["weights"].shape == (256,)
    run(scored, names)
    assert names["run"].info().draw["sampling"] == "distinct"
    names["run"] = names["client"].run("gpt-a")
    run(afterwards.replace("1234", "3").replace("1000, 1010", "1, 4").replace("step=5000", "step=3"), names)
    assert names["event"].record < names["run"].stats().journal_records
    assert names["other"].info().parent == "gpt-a"
    run(mixed, names)
    assert names["run"].info().mix["method"] == "temperature"
