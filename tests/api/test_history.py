"""The last quarter of an hour that the page draws when it is opened: a ring per instance."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwattd.history import COLUMNS, KEPT, KEPT_IN_ALL, Histories, History
from kvwattd.instance import InstanceRuntime

values = st.one_of(st.none(), st.floats(0.0, 1e4, width=32))


@given(st.integers(1, 5), st.lists(st.tuples(*[values] * len(COLUMNS)), max_size=12))
def test_the_newest_points_are_kept_in_order(kept: int, rows: list[tuple[float | None, ...]]) -> None:
    """As many as there is room for, oldest first; what was not known stays unknown."""
    history = History(kept)
    for at, row in enumerate(rows):
        history.add(float(at), row)
    times_s, columns = history.read()
    newest = rows[-kept:]
    assert times_s.tolist() == [float(at) for at in range(len(rows) - len(newest), len(rows))]
    for place, name in enumerate(COLUMNS):
        wanted = [row[place] for row in newest]
        assert [value is None for value in columns[name]] == [value is None for value in wanted]
        known = [v for v in columns[name] if v is not None]
        assert np.allclose(known, [v for v in wanted if v is not None], atol=1e-6)


def test_nothing_is_known_of_an_instance_before_its_first_point() -> None:
    runs: dict[str, InstanceRuntime] = {}
    times_s, columns = Histories(lambda: runs, lambda: 0.0).of("new").read()
    assert times_s.size == 0 and set(columns) == set(COLUMNS)
    assert all(column == [] for column in columns.values())


async def test_a_mistake_in_it_ends_nothing_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """What is only looked at must not take the daemon along."""

    def broken() -> dict[str, InstanceRuntime]:
        raise LookupError("gone")

    task = asyncio.create_task(Histories(broken, lambda: 0.0, period_s=0.001).run())
    await asyncio.sleep(0.05)
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert caplog.text.count("a point is lost") == 1 and "gone" in caplog.text


def test_many_instances_share_the_room() -> None:
    """A thousand of them take no more memory than a hundred."""
    assert 4 * KEPT_IN_ALL * (len(COLUMNS) + 2) < 8e6
    assert KEPT_IN_ALL >= 100 * KEPT
