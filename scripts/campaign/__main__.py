"""Run the campaign; `python scripts/campaign --help` lists its parts."""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

if not __package__:  # run as `python scripts/campaign`
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[2])

from scripts import campaign
from scripts.campaign import alterations, disks, hosts, kills
from scripts.campaign.runs import Reference


def main(arguments: list[str] | None = None) -> int:
    """Run the parts, print their tables, and return 1 if there was any problem."""
    parser = argparse.ArgumentParser(
        prog="python scripts/campaign",
        description=campaign.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=pathlib.Path, required=True, help="a folder on a local disk"
    )
    parser.add_argument("--parts", default="kills,checkpoints,disks,hosts")
    parser.add_argument("--kills", type=int, default=200, help="runs that are killed")
    parser.add_argument("--alterations", type=int, default=1000, help="of a checkpoint's files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="killed runs at the same time")
    options = parser.parse_args(arguments)
    folder = options.output.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    problems = 0
    for part in options.parts.split(","):
        module, records = run_part(part, folder, options)
        finished = []
        for record in records:
            finished.append(record)
            write(folder / f"{part}.jsonl", finished)
            print(f"{record['name']}: {'; '.join(record['problems']) or 'right'}", flush=True)
            problems += bool(record["problems"])
        print(f"\n## {part}\n\n{module.table(finished)}\n", flush=True)
    return int(problems > 0)


def run_part(
    part: str, folder: pathlib.Path, options: argparse.Namespace
) -> tuple[ModuleType, Iterator[dict[str, Any]]]:
    """Return the module of a part, and the records of its runs, which it yields as they end."""
    if part == "hosts":
        return hosts, hosts.run(folder)
    reference = Reference(folder / "reference-1", folder / "cache")
    if part == "disks":
        return disks, disks.run(folder, reference)
    if part == "checkpoints":
        return alterations, alterations.run(folder, reference, options.alterations, options.seed)
    pair = Reference(folder / "reference-2", folder / "cache", processes=2)
    references = {1: reference, 2: pair}
    return kills, kills.run(folder, references, options.kills, options.seed, options.jobs)


def write(path: pathlib.Path, records: list[dict[str, Any]]) -> None:
    """Write the records as lines of JSON."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


if __name__ == "__main__":
    sys.exit(main())
