"""`python -m benchmarks [NAME ...]` runs the benchmarks named, or all of them, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def main() -> None:
    chosen = sys.argv[1:] or NAMES
    if chosen[0] in ("-h", "--help"):
        print(f"{__doc__}\nThere are {', '.join(NAMES)}.")
        return
    if unknown := [name for name in chosen if name not in NAMES]:
        sys.exit(f"error: no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    failed = []
    for name in chosen:
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"error: {', '.join(failed)} failed")


if __name__ == "__main__":
    main()
