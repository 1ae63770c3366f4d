"""Python started afresh, on the CPU: alone, under torchrun, or as the forks of a launcher."""

from __future__ import annotations

import inspect
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

TESTS = Path(__file__).parent


def environment(**more: str) -> dict[str, str]:
    """One thread each, as under torchrun: on a CPU, bits may depend on the number of threads.

    The tests' helpers can be imported.
    """
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    one_thread = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **one_thread, "PYTHONPATH": path, **more}


def free_port() -> str:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start_python(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start it with further environment variables, and don't wait."""
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment(**variables),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell's background jobs ignore Ctrl-C, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def run_python(
    *arguments: str, processes: int = 0, folder: Path | None = None, timeout: float = 240
) -> str:
    """Run it to its end, which must be a success; what it printed.

    Args:
        arguments: the script and its options, or those of ``python`` itself.
        processes: that torchrun starts; 0 is one process without torchrun.
        folder: to run in; None is the present one.
        timeout: seconds.
    """
    if processes:
        torchrun = ("-m", "torch.distributed.run", "--nproc_per_node", str(processes))
        arguments = (*torchrun, "--master_port", free_port(), *arguments)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment(), capture_output=True,
        text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def leave() -> NoReturn:
    """End a script that may run under torchrun, and is done, without the interpreter's teardown.

    Gloo's threads outlive ``destroy_process_group`` where a DistributedDataParallel holds the
    group, and now and then one of them aborts the teardown: "terminate called without an active
    exception".
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def call_in_two(function: Callable[[str], None], folder: Path) -> None:
    """Call a module's function with a folder in two processes of Accelerate's debug_launcher.

    That forks, and a fork of a process that has used its OpenMP threads waits for them for ever:
    the two start from one that has imported the module and nothing else.
    """
    module, name = function.__module__, function.__name__
    code = (
        f"import {module}\n"
        "from accelerate import debug_launcher\n"
        f"debug_launcher({module}.{name}, ({str(folder)!r},), num_processes=2)\n"
    )
    run_python("-c", code, folder=Path(inspect.getfile(function)).parent, timeout=200)


def told_without(packages: Sequence[str], module: str) -> str:
    """What MissingExtraError says when a module is imported where these packages are missing."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({list(packages)}))\n"
        "from cgd_wrap.errors import MissingExtraError\n"
        f"try:\n    import {module}\n"
        "except MissingExtraError as error:\n    print(error)\n"
    )
    return run_python("-c", code)
