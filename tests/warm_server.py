"""Starts Python processes that have their imports behind them: forks of this one.

To import torch, open_clip, timm and the hosts takes a core up to 25 s, and dozens of tests start
processes of their own. This process imports what it is asked for and runs nothing else, so that its
forks are as a fresh Python after these imports. They share the seed of their hashes; where that may
matter, one side of a comparison starts afresh.

python warm_server.py FOLDER: listens on FOLDER/door until its standard input ends. Beside it lies
FOLDER/python, which takes a command line as Python does, for launchers that start processes.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import types
import warnings
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

LONGEST_REQUEST = 1 << 20  # bytes
STAND_IN = """#!{python} -IS
import json, os, signal, socket, sys
door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
door.connect({door!r})
request = {{"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ), "imports": []}}
socket.send_fds(door, [json.dumps(request).encode()], [1, 2])
child = int(door.recv(64))
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.kill(child, number))
code = int(door.recv(64))
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class Server:
    """Forks a process for each request, and tells who asked how it ended."""

    def __init__(self, folder: Path) -> None:
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.door.bind(str(folder / "door"))
        self.door.listen(64)
        stand_in = folder / "python"
        stand_in.write_text(STAND_IN.format(python=sys.executable, door=str(folder / "door")))
        stand_in.chmod(0o755)
        self.clients: dict[int, socket.socket] = {}  # by the process that was started for them
        self.wake, self.woken = os.pipe()
        os.set_blocking(self.woken, False)
        signal.set_wakeup_fd(self.woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def serve(self) -> dict[str, Any] | None:
        """Return a request in the process that was forked for it; None at the end, in this one."""
        while True:
            waiting = list(self.clients.values())
            ready = select.select([sys.stdin, self.wake, self.door, *waiting], [], [])[0]
            if self.wake in ready:
                os.read(self.wake, 4096)
            self.report()
            for pid, client in self.clients.items():
                if client in ready or sys.stdin in ready:  # nobody is left to ask for it
                    os.kill(pid, signal.SIGKILL)
            if sys.stdin in ready:
                return None
            if self.door in ready and (request := self.answer()):
                return request

    def report(self) -> None:
        """Tell those who asked the return codes of processes that ended, negative for a signal."""
        for pid in list(self.clients):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                with self.clients.pop(pid) as client, suppress(BrokenPipeError):
                    client.send(str(os.waitstatus_to_exitcode(status)).encode())

    def answer(self) -> dict[str, Any] | None:
        """Fork; the request in the new process, None in this one."""
        client, _ = self.door.accept()
        message, streams, _, _ = socket.recv_fds(client, LONGEST_REQUEST, 2)
        request: dict[str, Any] = json.loads(message)
        gc.disable()  # what is imported stays
        for name in request["imports"]:
            importlib.import_module(name)
        gc.freeze()  # else each fork would copy what it has imported as soon as it collects
        pid = os.fork()
        if pid == 0:
            gc.enable()
        else:
            self.clients[pid] = client
            client.send(str(pid).encode())
            for stream in streams:
                os.close(stream)
            return None
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, stream in enumerate((os.open(os.devnull, os.O_RDONLY), *streams)):
            os.dup2(stream, number)
            os.close(stream)
        for left in (self.door, client, *self.clients.values()):
            left.close()
        os.close(self.wake)
        os.close(self.woken)
        return request


def run(request: dict[str, Any], path: list[str]) -> None:
    """What ``python ARGUMENTS`` does; ``path`` is sys.path without a script's folder."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for library, seed in (("numpy", "random.seed"), ("torch", "seed")):
        if library in sys.modules:  # as after its import, which seeds from the system
            attrgetter(seed)(sys.modules[library])()
    added = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    path = [*(folder for folder in added if folder not in path), *path]
    kind, *arguments = request["argv"]
    if kind == "-u":
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        kind, *arguments = arguments
    if kind == "-W":
        warnings.simplefilter(arguments[0])  # type: ignore[arg-type]
        _, kind, *arguments = arguments
    if kind == "-c":
        sys.path[:], sys.argv = ["", *path], ["-c", *arguments[1:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(arguments[0], "<string>", "exec"), vars(main))
    elif kind == "-m":
        sys.path[:], sys.argv = [os.getcwd(), *path], arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[:], sys.argv = [str(Path(kind).resolve().parent), *path], [kind, *arguments]
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    asked = Server(Path(sys.argv[1])).serve()
    if asked:
        run(asked, sys.path[1:])
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # to take all the imports down would take a second
