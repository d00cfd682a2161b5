"""Run every benchmark and write the table: ``python -m benchmarks`` (README.md says how long it takes)."""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import time

from benchmarks import causal, commands, generation, merging, rotation, table, token_weighting, training
from benchmarks.harness import Result, Settings, machine, versions

ALL = {
    "commands": commands.measure,
    "generation": generation.measure,
    "training": training.measure,
    "rotation": rotation.measure,
    "merging": merging.measure,
    "causal": causal.measure,
    "token_weighting": token_weighting.measure,
}


def main() -> int:
    """Exit code 1 where something wanted was not met or not measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=list(ALL), help="run one benchmark")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that everything runs, no figures")
    parser.add_argument("--threads", type=int, default=2, help="threads of each process (default 2)")
    parser.add_argument("--model", default="lab", help="model for generation: lab (default) or a folder")
    chosen = parser.parse_args()
    settings = Settings(chosen.threads, chosen.quick, chosen.model)
    about = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(settings.threads),
        "versions": versions(),
        "quick": settings.quick,
    }
    met = True
    for name in [chosen.only] if chosen.only else ALL:
        print(f"{name} ...", file=sys.stderr)
        began = time.monotonic()
        try:
            results: list[Result] = ALL[name](settings)
        except (RuntimeError, subprocess.SubprocessError) as problem:  # the other benchmarks are still worth their time
            print(f"{name}: not measured. {problem}", file=sys.stderr)
            met = False
            continue
        kept = table.record(results, about | {"seconds": round(time.monotonic() - began)})
        print(table.markdown(kept))
        if not settings.quick:
            table.save(name, kept)
            table.write_readme(list(ALL))
        met = met and all(result.met for result in results)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
