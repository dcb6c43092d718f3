"""What travels with the weights from one checkpoint to the next: tokenizer files, generation settings."""

import shutil
from pathlib import Path

SUFFIXES = {".json", ".txt", ".model", ".jinja"}
OWN = ("config.json", "plan.json")


def copy_companions(source: Path, target: Path) -> None:
    """Copy the files of `source` that are neither weights, nor their index, nor the model's configuration."""
    for path in sorted(source.iterdir()):
        if path.suffix in SUFFIXES and path.name not in OWN and not path.name.endswith(".index.json"):
            shutil.copyfile(path, target / path.name)
