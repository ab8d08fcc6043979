"""The command: ``python -m benchmarks``, from the root of a clone, with any Python."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Final

from benchmarks.environments import make_ours, make_upstream

_NAMES: Final = (
    "one-by-one",
    "eight",
    "twenty",
    "shared",
    "crowd",
    "start-up",
    "memory",
    "waiting",
    "pins",
    "buffers",
    "nested",
)


def main() -> int:
    """Measure, print the table, and write table, plot and results to a folder."""
    options = _parser().parse_args()
    cache = Path(options.cache).expanduser().resolve()
    # Not resolved further: the Python of an environment is a link to one that knows nothing of it.
    ours = Path(options.ours).absolute() if options.ours else make_ours(cache)
    upstream = Path(options.upstream).absolute() if options.upstream else make_upstream(cache)
    if Path(sys.prefix).resolve() != ours.resolve():
        # Store, database and plotting library are in our environment.
        named = ["--ours", str(ours), "--upstream", str(upstream)]
        python = str(ours / "bin" / "python")
        os.execv(python, [python, "-m", "benchmarks", *sys.argv[1:], *named])
    from benchmarks.run import run

    folder = Path(options.output).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results = run(options.workloads or list(_NAMES), ours, upstream, quick=options.quick)
    (folder / "performance.json").write_text(json.dumps(results.as_json(), indent=1) + "\n")
    from benchmarks.report import plot, table

    text = table(results)
    (folder / "performance.txt").write_text(text)
    plot(results, folder)
    print(text)
    return 1 if results.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workloads", nargs="*", choices=[*_NAMES, []], help="which (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, smaller buffers")
    parser.add_argument("--output", default="build/benchmarks", help="folder for the results")
    parser.add_argument(
        "--cache", default="~/.cache/seamless-jobserver-benchmarks", help="folder for environments"
    )
    parser.add_argument("--ours", help="an environment with this jobserver and the extra bench")
    parser.add_argument("--upstream", help="an environment with upstream's jobserver")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
