"""Where reference data and golden numbers lie, beside the checkout; tests that need them skip without them."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parent.parent.parent / "shared"
DATA = SHARED / "data"
GOLDEN = SHARED / "golden"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"benchmark data is not at {DATA}")
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"golden numbers are not at {GOLDEN}")
