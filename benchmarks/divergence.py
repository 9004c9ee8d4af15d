"""Seconds and memory to count an annotated set: 47 attributes, with the bootstrap over identities.

    python benchmarks/divergence.py [--rows 1000000] [--replicates 200] [--threads 1]

Rows are made while they are counted, and the time that takes is subtracted. Seconds are of processor time.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator

import numpy as np
import torch
from machine import describe_machine

from fairface_synth.annotation import Annotations
from fairface_synth.attribute_counts import count_attributes
from fairface_synth.attribute_schema import MAAD_FACE
from fairface_synth.reports import markdown_table


class Stream(Annotations):
    """A set of any length: the same 64k rows again and again, under new identities."""

    total: int
    per_identity: int | None

    def batches(self, rows: int = 65536) -> Iterator[Annotations]:
        for start in range(0, self.total, rows):
            n = min(rows, self.total - start)
            first = start % (len(self) - rows)
            who = None
            if self.per_identity:
                who = np.char.add("person ", (np.arange(start, start + n) // self.per_identity).astype(str))
            yield Annotations(self.schema, self.probabilities[first : first + n], identities=who)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    p = torch.rand(1 << 16, len(MAAD_FACE), generator=torch.Generator().manual_seed(0))
    rows = []
    for per_identity, who in ((None, "none"), (50, "50 rows each")):
        for bins in (0, 20):
            source = Stream(MAAD_FACE, p)
            source.__dict__.update(total=args.rows, per_identity=per_identity)  # frozen
            start = time.process_time()
            for _ in source.batches(4096):
                pass
            making, start = time.process_time() - start, time.process_time()
            counts = count_attributes(source, bins=bins, replicates=args.replicates)
            seconds = time.process_time() - start - making
            assert counts.rows == args.rows
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rows.append([who, str(bins), f"{seconds:.1f}", f"{1e6 * seconds / args.rows:.1f}", f"{peak:.0f}"])
    header = ["identities", "bins", f"seconds, {args.rows:,} rows", "seconds per 10⁶ rows", "peak memory so far, MiB"]
    print(markdown_table(header, rows))
    print(f"\n{args.replicates} replicates, {len(MAAD_FACE)} attributes; {describe_machine()}")


if __name__ == "__main__":
    main()
