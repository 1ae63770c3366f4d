"""Python processes on the CPU: alone, under torchrun, or as the forks of a launcher.

They start warm where a server of such processes runs (see ``warm_server``), which conftest sees to.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn

TESTS = Path(__file__).parent
SERVER = "CGD_TESTS_SERVER"  # the variable that names the folder of the server in use
ALWAYS = ("accelerate", "cgd_wrap", "datasets", "open_clip", "timm", "torch._dynamo", "torchvision")


@contextmanager
def warm_server() -> Iterator[None]:
    """Let the processes that are started in here be forks of one that has done their imports."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(TESTS / "warm_server.py"), folder]
        env = environment(PYTHONHASHSEED="77")  # sets have another order there than in the tests
        with subprocess.Popen(command, stdin=subprocess.PIPE, env=env) as server:
            while not Path(folder, "python").exists() and server.poll() is None:
                time.sleep(0.01)
            os.environ[SERVER] = folder
            try:
                yield
            finally:
                del os.environ[SERVER]
                assert server.stdin is not None
                server.stdin.close()


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


class WarmProcess:
    """What the tests use of ``subprocess.Popen``, of a process that the server forked."""

    def __init__(
        self, arguments: Sequence[str], folder: Path | None, variables: dict[str, str],
        imports: Sequence[str],
    ) -> None:  # fmt: skip
        self.returncode: int | None = None
        self.streams: list[IO[str]] = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.door.connect(f"{os.environ[SERVER]}/door")
        request = {
            "argv": [*arguments], "cwd": str(folder or Path.cwd()), "env": variables,
            "imports": [*ALWAYS, *imports],
        }  # fmt: skip
        streams = [stream.fileno() for stream in self.streams]
        socket.send_fds(self.door, [json.dumps(request).encode()], streams)
        self.pid = int(self.door.recv(64))

    def poll(self) -> int | None:
        """Its return code, negative for a signal; None while it runs."""
        return self._ended(timeout=0)

    def _ended(self, timeout: float) -> int | None:
        if self.returncode is None:
            self.door.settimeout(timeout)
            try:
                self.returncode = int(self.door.recv(64))
            except (BlockingIOError, TimeoutError):
                return None
            self.door.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """Wait for its end; what it printed, and its errors."""
        if self._ended(timeout) is None:
            self.door.close()  # which ends it
            raise subprocess.TimeoutExpired("a warm process", timeout)
        printed = []
        for stream in self.streams:
            with stream:
                stream.seek(0)
                printed.append(stream.read())
        return printed[0], printed[1]


def start_python(
    *arguments: str,
    folder: Path | None = None,
    fresh: bool = False,
    imports: Sequence[str] = (),
    **variables: str,
) -> subprocess.Popen[str] | WarmProcess:
    """Start it, and don't wait.

    Args:
        arguments: the script and its options, or ``-c`` or ``-m`` and theirs.
        folder: to run in; None is the present one.
        fresh: not as a fork, but from nothing.
        imports: what the server has to import before, beside the usual.
        variables: further environment variables.
    """
    if SERVER in os.environ and not fresh:
        variables["PYTHON_EXEC"] = f"{os.environ[SERVER]}/python"  # what torchrun starts
        return WarmProcess(arguments, folder, environment(**variables), imports)
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env=environment(**variables),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell's background jobs ignore Ctrl-C, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def run_python(
    *arguments: str,
    processes: int = 0,
    timeout: float = 240,
    fresh: bool = False,
    folder: Path | None = None,
    imports: Sequence[str] = (),
) -> str:
    """Run it to its end, which must be a success; what it printed.

    Args:
        arguments: as of :func:`start_python`; so are fresh, folder and imports.
        processes: that torchrun starts; 0 is one process without torchrun.
        timeout: seconds.
    """
    if processes:
        torchrun = ("-m", "torch.distributed.run", "--nproc_per_node", str(processes))
        arguments = (*torchrun, "--master_port", free_port(), *arguments)
    process = start_python(*arguments, folder=folder, fresh=fresh, imports=imports)
    printed, errors = process.communicate(timeout=timeout)
    assert process.returncode == 0, errors
    return printed


def leave() -> NoReturn:
    """End a script that may run under torchrun, and is done, without the interpreter's teardown.

    Gloo's threads outlive ``destroy_process_group`` where a DistributedDataParallel holds the
    group, and now and then one of them aborts the teardown: "terminate called without an active
    exception".
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def call_in_two(
    function: Callable[[str], None], folder: Path, *, imports: Sequence[str] = ()
) -> None:
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
    here = Path(inspect.getfile(function)).parent
    run_python("-c", code, folder=here, timeout=200, imports=imports)
