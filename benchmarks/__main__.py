"""``python -m benchmarks`` runs every benchmark, one after the other."""

import sys

from benchmarks import replicates, worlds

for benchmark in (worlds, replicates):
    sys.argv = sys.argv[:1]
    benchmark.main()
    print(flush=True)
