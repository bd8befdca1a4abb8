from __future__ import annotations

import sys
from pathlib import Path

# The blank page of the core's tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
