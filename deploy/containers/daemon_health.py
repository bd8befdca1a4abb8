"""Exit status 0 while the daemon says it is healthy, 1 otherwise. KVWATT_HEALTH_URL: where it listens."""

from __future__ import annotations

import os
import ssl
import sys
import urllib.error
import urllib.request

URL = os.environ.get("KVWATT_HEALTH_URL", "http://127.0.0.1:8484/healthz")
DEADLINE_S = 3.0


def main() -> int:
    if not URL.startswith(("http://", "https://")):
        sys.stderr.write(f"KVWATT_HEALTH_URL = {URL!r}: expected http://... or https://...\n")
        return 1
    unverified = ssl.create_default_context()
    unverified.check_hostname = False  # asked of this container itself, which the certificate does not name
    unverified.verify_mode = ssl.CERT_NONE
    try:
        with urllib.request.urlopen(URL, timeout=DEADLINE_S, context=unverified):  # noqa: S310 (checked above)
            return 0
    except (urllib.error.URLError, OSError) as error:
        sys.stderr.write(f"{URL}: {error}\n")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
