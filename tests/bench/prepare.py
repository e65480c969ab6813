"""`openrlhf prepare mimic-cxr` on a made-up tree in MIMIC-CXR's layout: studies per second, the
most memory of a process, and a second run over what is finished. The peer that rates are compared
with is one process reading every report file of the tree and doing nothing with it.

`python tests/bench/prepare.py [STUDIES]`, by default 20,000."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support.datasets import write_mimic
from support.hostrun import COMMAND


def timed(src: Path, out: Path, processes: int) -> float:
    """Seconds that the command took."""
    words = [COMMAND, "prepare", "mimic-cxr", str(src), str(out), "--processes", str(processes)]
    began = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_mimic(root / "src", studies)
        began = time.perf_counter()
        read = sum(len(file.read_bytes()) for file in (root / "src").rglob("s*.txt"))
        peer = time.perf_counter() - began
        print(f"{studies:,} studies; reading their {read / 1e6:.1f} MB alone: {peer:.1f} s")
        for processes in (1, 2):
            took = timed(root / "src", root / f"out{processes}", processes)
            print(f"{processes} processes: {took:.1f} s, {studies / took:,.0f} studies/s, "
                  f"{took / peer:.1f} times the reading")  # fmt: skip
        most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        again = timed(root / "src", root / "out2", 2)
        print(f"a second run over finished work: {again:.2f} s, 1/{took / again:.0f} of the first")
        print(f"most memory of a process: {most / 1e3:.0f} MB")


if __name__ == "__main__":
    main()
