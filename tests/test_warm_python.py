"""A process that is started warm ends with the status, signal and output that a cold one would have."""

import signal
import subprocess
import sys

import psutil
import pytest
from warm_python import forked_pid

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]


def start(folder, code: str, *arguments: str) -> subprocess.Popen:
    script = folder / "script.py"
    script.write_text(code)
    return subprocess.Popen(
        [sys.executable, str(script), *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("code", "status", "output"),
    [
        ("import os, sys; print(os.getcwd(), sys.argv[1])", 0, "{folder} argument\n"),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('refused')", 1, "refused\n"),
        ("raise ZeroDivisionError", 1, "ZeroDivisionError\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("import atexit; atexit.register(print, 'at exit')", 0, "at exit\n"),
        ("import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()", 0, "thread\n"),
    ],
)
def test_exit_status_and_output(tmp_path, code, status, output):
    process = start(tmp_path, code, "argument")
    assert "".join(process.communicate(timeout=60)).endswith(output.format(folder=tmp_path))
    assert process.returncode == status


# A shell may start the tests with SIGINT ignored, which all processes inherit.
SLEEPS = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
print("begun", flush=True)
time.sleep(600)
"""
HANDLES = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n" + SLEEPS


@pytest.mark.parametrize(
    ("code", "number", "status"),
    [
        (SLEEPS, signal.SIGTERM, -signal.SIGTERM),
        (SLEEPS, signal.SIGINT, -signal.SIGINT),
        (SLEEPS, signal.SIGKILL, -signal.SIGKILL),
        (HANDLES, signal.SIGTERM, 5),
    ],
)
def test_signals_reach_the_forked_process(tmp_path, code, number, status):
    process = start(tmp_path, code)
    assert process.stdout.readline() == "begun\n"
    forked = psutil.Process(forked_pid(process.pid))
    assert forked.pid != process.pid
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == status
    forked.wait(20)  # a forked process ends with its client; raises TimeoutExpired
