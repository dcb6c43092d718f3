"""The warm process: what its forks see, and that nothing of it outlives who needed it."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from mcsmoe import warm
from tests.stages.test_interrupt import ends

ROOT = Path(__file__).parent.parent


def ran(code: str, *arguments: str, directory: Path = ROOT) -> tuple[int | None, str]:
    """Run code in a fork: its exit code, and what it printed."""
    warm.start()
    with TemporaryFile("w+") as output, open(os.devnull) as nothing:
        files = [nothing.fileno(), output.fileno(), output.fileno()]
        code_ = warm.run(["-c", code, *arguments], directory=directory, files=files)
        output.seek(0)
        return code_, output.read()


def test_a_fork_is_a_new_process_without_this_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OF_THE_CALLER", "its value")
    script = (
        "import os, sys; print(sys.argv[1:], os.getcwd(), os.environ['OF_THE_CALLER']);"
        "print('torch' in sys.modules, any(m.split('.')[0] in ('mcsmoe', 'stages') for m in sys.modules));"
        "print(sys.path[0] == os.getcwd(), len(os.listdir('/proc/self/fd')))"
    )
    code, printed = ran(script, "an argument", directory=tmp_path)
    assert code == 0
    # A descriptor lists the directory of descriptors; there are no others than the three streams.
    assert printed == f"['an argument'] {tmp_path} its value\nTrue False\nFalse 4\n"


@pytest.mark.parametrize(
    ("script", "code", "last"),
    [
        ("import sys; sys.exit(7)", 7, ""),
        ("import sys; sys.exit('a message')", 1, "a message"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
    ],
)
def test_how_a_fork_ends(script: str, code: int, last: str):
    found, printed = ran(script)
    assert (found, printed.strip().splitlines()[-1:]) == (code, [last] if last else [])


def test_forks_do_not_see_each_other():
    assert ran("import torch; torch.manual_seed(5); torch.set_num_threads(2); import fractions")[0] == 0
    seen = "import sys, torch; print(torch.initial_seed() == 5, torch.get_num_threads(), 'fractions' in sys.modules)"
    assert ran(seen.replace("'fractions'", "'antigravity'")) == (0, "False 1 False\n")


def test_without_a_warm_process_nothing_is_begun(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(warm, "_address", None)
    assert warm.run(["-c", "1 / 0"], directory=ROOT) is None
    monkeypatch.setattr(warm, "_address", "nowhere")
    assert warm.run(["-c", "1 / 0"], directory=ROOT) is None


def reachable(address: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        return connection.connect_ex(f"\0{address}") == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_its_owner(how: signal.Signals):
    script = "from mcsmoe import warm; warm.start(); print(warm._address, flush=True); import time; time.sleep(60)"
    owner = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert owner.stdout is not None
    address = owner.stdout.readline().strip()
    assert reachable(address)
    owner.send_signal(how)
    owner.communicate()
    for _ in range(300):
        if not reachable(address):
            return
        time.sleep(0.1)
    raise AssertionError("it is still there")


def test_the_work_ends_with_who_asked_for_it():
    warm.start()
    work = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    script = f"from mcsmoe import warm; warm.run(['-c', {work!r}], directory='.')"
    asks = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=os.environ | warm.shared(), stdout=subprocess.PIPE, text=True
    )
    assert asks.stdout is not None
    process = int(asks.stdout.readline())
    asks.kill()
    asks.wait()
    assert ends(process)


def test_the_work_ends_with_its_keeper():
    """Who asked then takes it for killed."""
    code, printed = ran("import os, time; print(os.getpid(), flush=True); os.kill(os.getppid(), 9); time.sleep(60)")
    assert code == -signal.SIGKILL
    assert ends(int(printed))
