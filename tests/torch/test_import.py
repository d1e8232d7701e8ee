"""What whoever lacks PyTorch is told."""

import subprocess
import sys

SOURCE = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch" or name.startswith("torch."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
import steelyard
try:
    import steelyard.torch
except ModuleNotFoundError as error:
    print(error.name, error)
"""


def test_without_torch_the_import_names_what_to_install() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SOURCE], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout == (
        "torch steelyard.torch needs PyTorch (No module named 'torch'); install it with: "
        'pip install "steelyard[torch]"\n'
    )
