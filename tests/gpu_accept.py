"""Prove on a GPU that fbsearch is right and fast there, and measure it: three parts of at most 9.5 minutes.

    python tests/gpu_accept.py A|B|C --device cuda [--output DIR]

A: right and fast. B: studies. C: the winner of B, and faults. Several parts run one after another. Each step is a
process with a time limit; DIR/A.jsonl gets a line {step, ok, seconds, predicted, measured} for each, DIR/STEP.log what
it has printed. The exit code is 1 if a step has failed. Needs no internet: what is not installed is taken from .gpu/,
which tests/gpu_pack.sh makes.
`--device cpu --tiny` runs the same steps as small as they get, to find mistakes in them without a GPU.
"""

import argparse
import dataclasses
import importlib.util
import os
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PACKED = ROOT / ".gpu"
PART_SECONDS = 9.5 * 60


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=["A", "B", "C"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=ROOT / "reports" / "gpu" / "run")
    parser.add_argument("--winner", type=Path, help="for C: the export of the search in B; by default in DIR")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args(argv)
    if importlib.util.find_spec("optuna") is None:
        _restart_with_packed_wheels()

    # Steps and the processes that they start find the modules beside this file, with PYTHONSAFEPATH, too.
    sys.path.insert(0, str(HERE))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
    from gpu import faults, speed, studies
    from gpu.harness import Setting, run_steps

    steps = {"A": speed.STEPS, "B": studies.STEPS, "C": faults.STEPS}
    output = arguments.output.resolve()
    winner = (arguments.winner or output / "winner.yaml").resolve()
    setting = Setting(arguments.device, arguments.tiny, output, PACKED, winner)
    patience = 20 if arguments.tiny else 1  # a tiny run looks for mistakes, on a machine that may be slow
    passed = []
    for part in arguments.parts:
        chosen = [dataclasses.replace(step, limit_seconds=patience * step.limit_seconds) for step in steps[part]]
        passed.append(run_steps(part, chosen, setting, limit_seconds=patience * PART_SECONDS))
    return 0 if all(passed) else 1


def _restart_with_packed_wheels() -> None:
    """Unpack the wheels in .gpu/ and run this again with them on the path; a wheel is a zip file of packages."""
    wheels = sorted(PACKED.glob("*.whl"))
    if not wheels or os.environ.get("FBSEARCH_GPU_SITE"):
        sys.exit("optuna is not installed and .gpu/ has no wheels: run tests/gpu_pack.sh where there is internet")
    site = tempfile.mkdtemp(prefix="fbsearch-gpu-")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    path = os.pathsep.join(filter(None, [site, os.environ.get("PYTHONPATH", "")]))
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"PYTHONPATH": path, "FBSEARCH_GPU_SITE": site})


if __name__ == "__main__":
    sys.exit(main())
