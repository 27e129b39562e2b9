"""``python -m benchmarks`` runs every benchmark, one after the other, and keeps what it found."""

import argparse
from pathlib import Path

from benchmarks import record, replicates, time_to_threshold, worlds


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--results", type=Path, default=record.RESULTS)
    folder = parser.parse_args().results
    for measure in (worlds.measure, replicates.measure, time_to_threshold.measure):
        for found in measure():
            print(f"{record.table(found)}\nkept in {record.write(found, folder)}\n", flush=True)


if __name__ == "__main__":
    main()
