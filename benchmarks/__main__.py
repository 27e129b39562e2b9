"""``python -m benchmarks`` runs every benchmark, one after the other, and keeps what it found."""

import argparse
from pathlib import Path

from benchmarks import record, replicates, startup, time_to_threshold, worlds


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--results", type=Path, default=record.RESULTS)
    folder = parser.parse_args().results
    for part in (worlds, replicates, startup, time_to_threshold):
        for found in part.measure():
            print(f"{record.table(found)}\nkept in {record.write(found, folder)}\n", flush=True)


if __name__ == "__main__":
    main()
