"""Write the pages.

python -m kvwattd.docs            write them (in the root of a checkout)
python -m kvwattd.docs --check    exit code 1 where they are not up to date
"""

from __future__ import annotations

import sys
from pathlib import Path

from kvwattd.docs import FOLDER, pages


def main(check: bool, root: Path) -> int:
    """Write the pages, or compare them with what is there."""
    stale = []
    for name, text in pages(root).items():
        path = root / FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    if check and stale:
        sys.stderr.write(f"not up to date: {', '.join(stale)}; run python -m kvwattd.docs\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main("--check" in sys.argv[1:], Path.cwd()))
