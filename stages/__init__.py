"""The stages of the pipeline. Importing this package sets up Ctrl-C before anything slow is imported."""

import sys

from mcsmoe.interrupt import follow, idle, resumed_by

resumed_by("dvc repro")
# While `python -m stages.NAME` imports this package, argv[0] is "-m"; other programs keep their own handler.
if sys.argv[:1] == ["-m"]:
    idle()
    follow()
