"""`make leave`: 150 signals to single processes, then 50 to workers of msrun; half an hour."""

from __future__ import annotations

import sys

from exact.driver import Campaign, main
from exact.launches import TOP

from leave import chain, ranks

RESULTS = TOP / "benchmarks" / "results" / "leave.jsonl"
LEAVE = Campaign("leave", "signals", 150, 50, 17, chain.run, ranks.chain, RESULTS)

if __name__ == "__main__":
    sys.exit(main(LEAVE, __doc__, sys.argv[1:]))
