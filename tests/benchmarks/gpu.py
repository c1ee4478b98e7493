#!/usr/bin/env python3
"""All that waits for a GPU, in three runs of at most nine minutes each: one JSON and one table.

    python tests/benchmarks/gpu.py --out gpu.json --table gpu.md --cifar10 FOLDER [--tiny FOLDER] \\
        [--reference reference_step.py --ijepa CHECKOUT]

Start it three times with the same --out: a finished part is not run again, and a part that does not fit in what is left
of the nine minutes is left for the next start, which begins with the longest. Each part runs in a process of its own;
one that fails leaves one line in the JSON and its output in OUT.logs/PART.txt, and the others go on. (`--retry` runs it
again.) FOLDER has train/ and test/ with a folder for each class. `--miniature` runs all of it on a CPU, with tiny
networks. Linux only.

Exit status: 0, 1 if a part has failed in this start, 2 if nothing can be measured.
"""

import time

_STARTED = time.monotonic()

import argparse  # noqa: E402
import functools  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from gpu_parts import exact, peers, runs, vits  # noqa: E402
from gpu_parts.record import Record, machine  # noqa: E402
from gpu_parts.setup import Part, Setup, forked  # noqa: E402

from hjepa_pl.utils.atomic_file import atomic_write  # noqa: E402

PARTS = [
    Part("ViT-S/16", 60, functools.partial(vits.sizes, "small")),
    Part("ViT-B/16", 80, functools.partial(vits.sizes, "base")),
    Part("ViT-L/16", 110, functools.partial(vits.sizes, "large")),
    Part("ViT-Ti/4 at 32", 70, runs.tiny),
    Part("exactness", 60, exact.runs),
    Part("32-true", 40, exact.float32),
    Part("I-JEPA", 70, peers.ijepa),
    Part("lightly", 30, peers.lightly),
    Part("attention kernels", 50, vits.kernels),
    Part("compile", 100, vits.compiled),
    Part("CIFAR-10", 505, runs.cifar10),
    Part("overnight", 180, runs.overnight),
    Part("DDP", 60, runs.ddp),
]
_MARGIN = 5.0
"""Seconds in which the last part is ended and the files are written."""


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON; an existing one is continued")
    parser.add_argument("--table", type=Path, help="the Markdown table (default: OUT with .md)")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this start, imports included")
    parser.add_argument("--parts", nargs="+", choices=[p.name for p in PARTS], help="only these")
    parser.add_argument("--retry", action="store_true", help="run failed parts again")
    parser.add_argument("--cifar10", type=Path, metavar="FOLDER")
    parser.add_argument("--tiny", type=Path, metavar="FOLDER", help="photographs, the other data of overnight.yaml")
    parser.add_argument("--reference", type=Path, metavar="SCRIPT", help="times the public I-JEPA code")
    parser.add_argument("--ijepa", type=Path, metavar="CHECKOUT", help="of facebookresearch/ijepa, for --reference")
    parser.add_argument("--miniature", action="store_true", help="everything tiny, on the CPU")
    return parser.parse_args()


def measure(part: Part, setup: Setup, logs: Path) -> tuple[dict[str, Any], str | None]:
    """Run a part in a process of its own; return its rows, and its error in one line or None."""
    file = setup.work / "rows.json"

    def child() -> None:
        rows = {}
        for name, figures in part.run(setup):
            rows[name] = figures
            with atomic_write(file) as out:
                out.write(json.dumps(rows))

    log = logs / f"{part.name.replace('/', '-')}.txt"
    log.unlink(missing_ok=True)
    error = forked(child, log, setup.left)
    rows = json.loads(file.read_text()) if file.exists() else {}
    wrong = [name for name, figures in rows.items() if isinstance(figures, dict) and "error" in figures]
    if error is None and wrong:
        error = f"{len(wrong)} of {len(rows)} rows: {', '.join(wrong)}"
    return rows, None if error is None else f"{error} (see {log})"


def in_order(record: Record, chosen: list[str] | None, retry: bool) -> list[Part]:
    """Return the parts to run: in their order, in a later start the longest first."""

    def waits(part: Part) -> bool:
        done = record.parts.get(part.name)
        return done is None or (retry and done["error"] is not None)

    parts = [p for p in PARTS if waits(p) and (chosen is None or p.name in chosen)]
    return sorted(parts, key=lambda p: -p.seconds) if record.parts else parts


def run_all(a: argparse.Namespace, record: Record, device: str, folder: Path) -> bool:
    """Run what fits; return whether a part has failed."""
    end, failed, first = _STARTED + 60 * a.minutes - _MARGIN, False, True
    for number, part in enumerate(in_order(record, a.parts, a.retry)):
        left = end - time.monotonic()
        if not first and left < (1 if a.miniature else part.seconds):
            continue
        work = folder / str(number)
        work.mkdir()
        setup = Setup(device, a.miniature, work, left, *map(_whole, (a.cifar10, a.tiny, a.reference, a.ijepa)))
        began = time.monotonic()
        print(f"{part.name} ...", flush=True)
        rows, error = measure(part, setup, a.out.with_suffix(".logs"))
        seconds = time.monotonic() - began
        if error is not None and error.startswith("stopped after") and not first:
            print(f"{part.name}: {error}; left for the next start", flush=True)
            continue
        record.add(part.name, rows, error, seconds)
        failed, first = failed or error is not None, False
        print(f"{part.name}: {seconds:.0f} s{'' if error is None else f', failed: {error}'}", flush=True)
    return failed


def _whole(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


def main() -> int:
    """Run what is left, and return the exit status."""
    a = parse()
    record = Record(a.out, a.table or a.out.with_suffix(".md"), [p.name for p in PARTS])
    with tempfile.TemporaryDirectory(prefix="hjepa-gpu-") as temporary:
        folder = Path(temporary)
        about = folder / "machine.json"
        # In a process of its own: one that has used the GPU cannot be forked.
        error = forked(lambda: about.write_text(json.dumps(machine())) and None, folder / "log.txt", 60)
        if error is not None:
            print(f"gpu.py: error: the machine cannot be read: {error}", file=sys.stderr)
            return 2
        found = json.loads(about.read_text())
        if not found["gpus"] and not a.miniature:
            print("gpu.py: error: there is no CUDA device; add --miniature to try it on the CPU.", file=sys.stderr)
            return 2
        refused = record.begin(found, a.miniature, a.minutes)
        if refused is not None:
            print(f"gpu.py: error: {refused}", file=sys.stderr)
            return 2
        failed = run_all(a, record, "cpu" if a.miniature else "cuda", folder)
    done = sum(p.name in record.parts for p in PARTS)
    print(f"{done} of {len(PARTS)} parts are done{'' if done == len(PARTS) else '; start again with the same --out'}.")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
