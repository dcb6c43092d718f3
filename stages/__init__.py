"""As a stage starts, Ctrl-C is answered before anything else is imported."""

import sys

# So `python -m stages.NAME` has it while it imports this package; other programs keep their own answer.
if sys.argv[:1] == ["-m"]:
    from stages.interrupt import idle

    idle()
