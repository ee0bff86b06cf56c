"""A `python` program for tests that starts in milliseconds, because PyTorch and the package are imported only once.

A cold `python` needs many seconds to import PyTorch, and the slow tests start hundreds of processes. So a test session starts
one server, which imports everything and then waits. The `warm` fixture (conftest.py) sets `sys.executable` to a small program,
the client. Whoever starts `sys.executable`, starts a client:

1. The client sends its command line, working folder, environment and open files to the server.
2. The server forks itself. The forked process takes these over, and runs the command line as `python` would.
3. The client passes SIGTERM, SIGINT and SIGHUP on to the forked process, and ends with its exit status or signal. If the client
   is killed (SIGKILL), the server kills the forked process.

So a caller sees a client that behaves like the command that it started, with two differences: the forked process has its own id
(`forked_pid`) and session, and its parent is the server. Tests of the parent of a process, its memory, its imports
or the end of the interpreter use cold processes. Only code, scripts and the modules in WARM are forked. For all other command
lines the client becomes a cold `python`.
"""

import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

WARM = {
    "accelerate.commands.launch",
    "ipykernel_launcher",
    "papermill",
    "pytest",
    "torch.distributed.run",
    "vmae_lab.lab.worker",
}
PRELOADED = (
    "accelerate", "ipykernel.kernelapp", "matplotlib.pyplot", "nbformat", "papermill", "tabulate", "torch.distributed.run",
    "vmae_lab.cli.notebooks", "vmae_lab.lab.experiments", "vmae_lab.lab.notebook", "vmae_lab.lab.run_store",
)  # fmt: skip
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
FIRST_FREE_FILE = 500  # above the numbers of all files that a client has open


def forked_pid(client: int) -> int:
    """The id of the forked process that works for a client. A cold process works itself, so its own id is returned."""
    file = Path(sys.executable).with_name(str(client))
    return int(file.read_text()) if file.exists() else client


# ---------------------------------------------------------------------------------------------------------------------------
# The client


def run_client(address: str, arguments: list[str]) -> None:
    """Let the server run `python arguments`, and end as the forked process ends. Does not return."""
    command = [argument for argument in arguments if argument not in ("-u", "-B")]
    if not is_warm(command):
        os.execv(sys.executable, [sys.executable, *arguments])
    files = [number for number in map(int, os.listdir("/proc/self/fd")) if is_open(number)]
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    request = {"command": command, "folder": os.getcwd(), "environment": dict(os.environ), "files": files, "pid": os.getpid()}
    data = json.dumps(request).encode() + b"\n"
    sent = socket.send_fds(server, [data], files)
    server.sendall(data[sent:])
    answers = server.makefile()
    pid = int(answers.readline())
    for number in FORWARDED:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    # The server ends when the test session ends. Then there is no second answer, and the forked process is killed too.
    end_with(int(answers.readline() or -signal.SIGKILL))


def is_warm(command: list[str]) -> bool:
    """Whether the server runs this command line."""
    match command:
        case ["-m", module, *_]:
            return module in WARM
        case ["-c", code, *_]:
            return "resource_tracker" not in code  # it must outlive the process that starts it
        case [script, *_]:
            return script.endswith(".py")
    return False


def is_open(number: int) -> bool:
    """Whether a file number is open. The listing of /proc/self/fd also has the number with which the folder itself was read."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def end_with(status: int) -> None:
    """End this process with an exit status, or by the signal -status if it is negative."""
    if status >= 0:
        os._exit(status)
    if -status in FORWARDED:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)


# ---------------------------------------------------------------------------------------------------------------------------
# The server


@dataclass
class Forked:
    """A forked process: its id, a file that is readable when it has ended, and the connection to its client."""

    pid: int
    ended: int
    client: socket.socket

    def close(self) -> None:
        os.close(self.ended)
        self.client.close()


def serve(address: str) -> dict:
    """Fork a process per request until standard input is closed. Return only in the forked processes, with the request."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    running: list[Forked] = []
    print("ready", flush=True)
    while True:
        watched = [sys.stdin, listener, *(item for forked in running for item in (forked.ended, forked.client))]
        readable, _, _ = select.select(watched, [], [])
        if sys.stdin in readable:  # the test session has ended
            for forked in running:
                os.kill(forked.pid, signal.SIGKILL)
            os._exit(0)
        for forked in list(running):
            if forked.ended in readable:
                answer(forked.client, os.waitstatus_to_exitcode(os.waitpid(forked.pid, 0)[1]))
                forked.close()
                running.remove(forked)
            elif forked.client in readable:  # a client sends nothing more, so this is the end of its connection: it was killed
                os.kill(forked.pid, signal.SIGKILL)
        if listener in readable:
            client, _ = listener.accept()
            request = receive(client)
            if (pid := os.fork()) == 0:
                for forked in running:
                    forked.close()
                client.close()
                listener.close()
                return request
            for number in request["received"]:
                os.close(number)
            running.append(Forked(pid, os.pidfd_open(pid), client))
            file = Path(address).with_name(str(request["pid"]))  # for `forked_pid`
            file.with_suffix(".tmp").write_text(str(pid))
            file.with_suffix(".tmp").rename(file)  # never read half-written
            answer(client, pid)


def receive(client: socket.socket) -> dict:
    data, received, _, _ = socket.recv_fds(client, 1 << 20, 250)
    while not data.endswith(b"\n"):
        data += client.recv(1 << 20)
    return {**json.loads(data), "received": received}


def answer(client: socket.socket, number: int) -> None:
    with suppress(BrokenPipeError):  # the client was killed, which `serve` sees next
        client.sendall(f"{number}\n".encode())


# ---------------------------------------------------------------------------------------------------------------------------
# A forked process


def become(request: dict, program: str) -> None:
    """Take over the session, files, folder, environment and import path that a client's process would have."""
    import multiprocessing
    import tempfile

    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # coverage has set a handler in the server, which fails in a forked process
    moved = [fcntl.fcntl(number, fcntl.F_DUPFD, FIRST_FREE_FILE) for number in request["received"]]
    for number in (0, 1, 2, *request["received"]):
        os.close(number)
    for number, wanted in zip(moved, request["files"], strict=True):
        os.dup2(number, wanted)
        os.close(number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # follow the new TMPDIR
    del sys.path[0]  # the folder of this file
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.executable = program
    multiprocessing.set_executable(program)


def execute(command: list[str]) -> None:
    """Do what `python command` does."""
    import runpy

    match command:
        case ["-m", module, *_]:
            sys.argv = command[1:]
            sys.path.insert(0, os.getcwd())
            if module == "ipykernel_launcher":
                # A kernel chooses this backend by an environment variable, which matplotlib reads when it is imported.
                import matplotlib

                matplotlib.rcParams["backend"] = "module://matplotlib_inline.backend_inline"
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *arguments]:
            sys.argv = ["-c", *arguments]
            exec(code, {"__name__": "__main__"})
        case [script, *_]:
            sys.argv = command
            sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
            runpy.run_path(script, run_name="__main__")


def run_to_exit(command: list[str]) -> None:
    """Execute a command line and end this process as `python` would. Does not return.

    The interpreter's own finalization would take seconds: it writes to, and so copies, all memory that the server shares.
    """
    import atexit
    import threading
    import traceback

    status = 0
    try:
        execute(command)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if status and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        status = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # wait for threads that are not daemons
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    end_with(status)


if __name__ == "__main__":
    if sys.argv[1] == "client":
        run_client(sys.argv[2], sys.argv[3:])
    from importlib import import_module

    for module in PRELOADED:
        import_module(module)
    gc.freeze()  # a garbage collection in a forked process would write to, and so copy, the memory that all share
    _, _, address, program = sys.argv
    become(request := serve(address), program)
    run_to_exit(request["command"])
