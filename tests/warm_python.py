"""A `python` that starts at once: a server imports the package once, and forks a process for each start.

As a program, `warm_python.py SERVER python's own words` stands in for a `python`: it hands its words, folder, environment and
open files to the server, passes signals on to the forked process and ends with its status. If it is killed, so is that process.
Everything that is not listed in WARM is started by the real interpreter. Tests use this where the start of a process, its
memory and its parent (by which a kernel finds its notebook) are not what is tested.
"""

import gc
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

# Modules that are started warm; so are scripts and the processes that multiprocessing spawns.
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
INLINE = "module://matplotlib_inline.backend_inline"  # the backend of a kernel, which chooses it before matplotlib is imported


def forked_for(client: int) -> int:
    """The id of the process that stands behind a client, which has the id that a test knows; of a cold process its own."""
    file = Path(sys.executable).with_name(str(client))
    return int(file.read_text()) if file.exists() else client


# ---------------------------------------------------------------------------------------------------------------- the server


def serve(address: str) -> dict | None:
    """Fork a process per request until the standard input is closed. Returns, in each forked process, its request."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    started: dict[int, socket.socket] = {}
    print("ready", flush=True)
    while True:
        readable, _, _ = select.select([sys.stdin, listener, woken, *started.values()], [], [])
        if sys.stdin in readable:
            for pid in started:
                os.kill(pid, signal.SIGKILL)
            os._exit(0)
        for pid in [pid for pid, client in started.items() if client in readable]:  # closed: its client was killed
            os.kill(pid, signal.SIGKILL)
            started.pop(pid).close()
        if woken in readable:
            os.read(woken, 1024)
            while (done := _ended())[0]:
                if client := started.pop(done[0], None):
                    _answer(client, done[1])
                    client.close()
        if listener in readable:
            client, _ = listener.accept()
            request = _receive(client)
            if (pid := os.fork()) == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for other in (listener, client, *started.values()):
                    other.close()
                os.close(woken)
                os.close(wake)
                return request
            for number in request["received"]:
                os.close(number)
            started[pid] = client
            Path(address).with_name(str(request["pid"])).write_text(str(pid))
            _answer(client, pid)


def _ended() -> tuple[int, int]:
    """The id and exit status of a process that has ended, or zeros."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return 0, 0
    return pid, os.waitstatus_to_exitcode(status) if pid else 0


def _answer(client: socket.socket, number: int) -> None:
    with suppress(BrokenPipeError):  # it was killed, which the server sees next
        client.sendall(f"{number}\n".encode())


def _receive(client: socket.socket) -> dict:
    data, received, _, _ = socket.recv_fds(client, 1 << 20, 250)
    while not data.endswith(b"\n"):
        data += client.recv(1 << 20)
    return {**json.loads(data), "received": received}


def become(request: dict, program: str) -> None:
    """Turn a forked process into what its client was started as: files, folder, environment and words."""
    import multiprocessing
    import tempfile
    import warnings

    os.setsid()
    moved = [os.dup2(number, 600 + place) for place, number in enumerate(request["received"])]
    for number in (0, 1, 2, *request["received"]):
        os.close(number)
    for number, wanted in zip(moved, request["files"], strict=True):
        os.dup2(number, wanted)
        os.close(number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    del sys.path[0]  # the folder of this file
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.executable = program
    multiprocessing.set_executable(program)
    warnings.resetwarnings()
    warnings.simplefilter("default")
    warnings.simplefilter("ignore", DeprecationWarning)


def execute(words: list[str]) -> None:
    """Do what `python words` does."""
    import runpy

    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        if words[1] == "ipykernel_launcher":
            import matplotlib

            matplotlib.rcParams["backend"] = INLINE
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
        runpy.run_path(words[0], run_name="__main__")


def status_of(words: list[str]) -> int:
    """Execute `python words` to its end; the exit status. Python's own end would touch, and so copy, all memory."""
    import atexit
    import threading
    import traceback

    status = 0
    try:
        execute(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if status and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        status = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


# ---------------------------------------------------------------------------------------------------------------- the client


def is_warm(words: list[str]) -> bool:
    if words[:1] == ["-m"]:
        return words[1] in WARM
    return bool(words) and (words[0].endswith(".py") or (words[0] == "-c" and "multiprocessing.spawn" in words[1]))


def start(address: str, words: list[str]) -> None:
    """Start a process of the server, and end as it ends."""
    plain = [word for word in words if word not in ("-u", "-B")]
    if not is_warm(plain):
        os.execv(sys.executable, [sys.executable, *words])
    files = [number for number in map(int, os.listdir("/proc/self/fd")) if _is_open(number)]
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    request = {"words": plain, "folder": os.getcwd(), "environment": dict(os.environ), "files": files, "pid": os.getpid()}
    data = json.dumps(request).encode() + b"\n"
    sent = socket.send_fds(server, [data], files)
    server.sendall(data[sent:])
    answers = server.makefile()
    pid = int(answers.readline())
    for number in FORWARDED:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    status = int(answers.readline() or -signal.SIGKILL)
    end_with(status)


def end_with(status: int) -> None:
    """End this process with an exit status; a negative one is of a signal."""
    if status >= 0:
        os._exit(status)
    if -status in FORWARDED:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    if sys.argv[1] != "serve":
        start(sys.argv[1], sys.argv[2:])
    from importlib import import_module

    for module in PRELOADED:
        import_module(module)
    gc.freeze()  # no collection touches what all processes share
    address, program = sys.argv[2:]
    become(request := serve(address), program)
    end_with(status_of(request["words"]))
