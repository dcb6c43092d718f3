"""The stages of the pipeline. Importing this package sets up Ctrl-C before anything slow is imported.

If a fork can do the work of a stage at once, the stage is handed over, and nothing slow is imported at all.
"""

import sys
from importlib.util import find_spec

from mcsmoe.interrupt import follow, idle, resumed_by
from stages.handover import hand_over

NEEDED = ("accelerate", "datasets", "jinja2", "matplotlib", "pydantic", "safetensors", "scipy", "sklearn", "torch",
          "tqdm", "transformers", "typer", "xxhash", "yaml")  # fmt: skip


def check_packages() -> None:
    """Exit with code 2 and one line if this Python lacks a package: dvc takes the first `python` that it finds."""
    missing = next((name for name in NEEDED if find_spec(name) is None), None)
    if missing:
        told = "activate the environment of the project (`. .venv/bin/activate`), or make it with `make install`"
        print(f"error: {missing} is not installed in {sys.executable}: {told}", file=sys.stderr)
        sys.exit(2)


resumed_by("dvc repro")
# While `python -m stages.NAME` imports this package, argv[0] is "-m"; other programs keep their own handler.
if sys.argv[:1] == ["-m"]:
    idle()
    follow()
    check_packages()
    hand_over()
