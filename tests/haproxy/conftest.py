"""HAProxy, or a skip that says why there is none."""

from __future__ import annotations

import pytest
from haproxy_process import NoHaproxyError, find


@pytest.fixture(scope="session", autouse=True)
def _haproxy() -> None:
    try:
        find()
    except NoHaproxyError as error:
        pytest.skip(str(error))
