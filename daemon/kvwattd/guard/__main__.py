"""`python -m kvwattd.guard`."""

from __future__ import annotations

import sys

from kvwattd.guard.main import main

sys.exit(main())
