"""Which examples a result was measured on."""

import hashlib
from collections.abc import Sequence

from mcsmoe.tasks.task import Example


def fingerprint(examples: Sequence[Example]) -> str:
    """SHA-256 over sources and targets, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.source, example.target)).encode())
    return digest.hexdigest()
