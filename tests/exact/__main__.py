"""`make exact`: 400 kills of single processes, then 100 of workers of msrun; about 40 minutes."""

from __future__ import annotations

import sys

from exact import chain, ranks
from exact.driver import Campaign, main
from exact.launches import TOP

RESULTS = TOP / "benchmarks" / "results" / "exact.jsonl"
EXACT = Campaign("exact", "kills", 400, 100, 10, chain.run, ranks.chain, RESULTS)

if __name__ == "__main__":
    sys.exit(main(EXACT, __doc__, sys.argv[1:]))
