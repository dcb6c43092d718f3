"""The stages of the pipeline. Importing this package sets up Ctrl-C before anything slow is imported."""

import sys

# While `python -m stages.NAME` imports this package, argv[0] is "-m"; other programs keep their own handler.
if sys.argv[:1] == ["-m"]:
    from stages.interrupt import idle

    idle()
