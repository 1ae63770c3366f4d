"""Run a defence of BackdoorBench on CGD's clean split instead of truly clean data.

Copy this file to BackdoorBench's root and run it there, after defense/cgd.py on the same result:

python split_clean.py --defense fp --result_file badnet --dataset cifar10 \
    --yaml_path ./config/defense/fp/cifar10.yaml

``--defense`` is fp, anp, i-bau, mcr, or any other that takes its clean data from
``load_attack_result`` (ft, ft-sam, nad, nc, npd, rnp, sau). All other arguments are those of the
defence's own script. The code of CGD's authors has ``--enable_clip`` for this purpose.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Replace BackdoorBench's loader of results, then run the defence's script unchanged."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--defense", required=True, help="fp, anp, i-bau, mcr, ...")
    parser.add_argument("--clean_size", type=int, help="draw so many samples of the split; "
                        "default: all, about 70%% of the training set")  # fmt: skip
    parser.add_argument("--split_seed", type=int, default=0, help="of that draw")
    options, rest = parser.parse_known_args()
    fixed = [name for name in ("--ratio", "--index") if _is_given(name, rest)]
    if fixed:
        parser.error(f"{fixed} choose from truly clean data; here use --clean_size")
    script = Path("defense") / f"{options.defense}.py"
    if not script.is_file() or not Path("utils/save_load_attack.py").is_file():
        parser.error(f"no {script} with utils beside it: run this from BackdoorBench's root")
    # Imported after these checks, since the imports take seconds.
    import numpy as np

    from cgd_wrap.backdoorbench import splitting_loader

    sys.path.insert(0, os.getcwd())
    if not hasattr(np, "infty"):
        np.infty = np.inf  # BackdoorBench's plots use this name, which NumPy 2 dropped
    import utils.save_load_attack as host

    host.load_attack_result = splitting_loader(
        host.load_attack_result, max_size=options.clean_size, seed=options.split_seed
    )
    # Without --ratio the script would take 5% of the split, as it does of truly clean data.
    sys.argv = [str(script), *rest, "--ratio", "1.0"]
    runpy.run_path(str(script), run_name="__main__")


def _is_given(name: str, arguments: list[str]) -> bool:
    return any(argument.split("=")[0] == name for argument in arguments)


if __name__ == "__main__":
    main()
