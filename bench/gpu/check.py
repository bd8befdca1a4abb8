"""Read-only checks of a real NVIDIA GPU: what kvwatt relies on, measured. Sets nothing (docs/hardware.md).

    python bench/gpu/check.py --gpu 0 --out measured            # with PyTorch, or readings alone
    python bench/gpu/check.py --gpu 0 --url http://127.0.0.1:8000 --out measured   # with vLLM

Writes readings.json, profile.csv (present clock only) and card.toml into the folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from hardware_card import Found, write
from loads import NoLoad, Shape
from measure import notes, open_load, parser_of, points, read_all, run, show, today, uuid_of, write_json

from kvwatt.profiles import ProfileRow
from kvwattd.profiler.table import TableWriter


async def check(options: argparse.Namespace) -> int:
    """Readings, then points at the present clock if there is a load."""
    uuid = uuid_of(options.gpu)
    options.out.mkdir(parents=True, exist_ok=True)
    readings = read_all(uuid, options.watch)
    show(readings)
    rows: list[ProfileRow] = []
    shape: Shape | None = None
    try:
        load = await open_load(options, uuid)
    except NoLoad as error:
        print(f"no steps measured: {error}")
    else:
        shape = load.shape
        print(f"steps of {shape.model} ({shape.software}) at the present clock:")
        with TableWriter(options.out / "profile.csv", notes(readings.facts, load)) as table:
            rows = await points(load, options, table, None)
        await load.close()
    alone = readings.facts.processes == 0
    found = Found(
        readings.facts,
        shape,
        rows,
        today(),
        idle_mhz=readings.idle_mhz if alone else None,
        parked_w=readings.idle_w if alone else None,
        energy_period_s=readings.energy_period_s,
    )
    write_json(options.out / "readings.json", {"measured": found.when, **readings.document})
    write(options.out / "card.toml", found, options.like)
    print(f"written to {options.out}/; nothing was set on the GPU")
    return 0


def main() -> int:
    return run(check(parser_of(__doc__).parse_args()))


if __name__ == "__main__":
    sys.exit(main())
