"""Claims between real processes, some of which are killed."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections import Counter

import pytest

from vfx_engines.errors import UsageError
from vfx_runtime import claims as claims_module
from vfx_runtime.claims import CLAIMS_FILE, Claims

HOLDER = """
import sys
from pathlib import Path
from vfx_runtime.claims import Claims
with Claims(Path(sys.argv[1])) as claims:
    for line in sys.stdin:
        verb, name = line.split()
        print(getattr(claims, verb)(name), flush=True)
"""

# Does what a run does: claims each name, and does it if it is not done. An empty file stands for an output.
WORKER = """
import os, sys
from pathlib import Path
from vfx_runtime.claims import Claims
out = Path(sys.argv[1])
left = {f"video{i}" for i in range(200)}
while left:
    with Claims(out) as claims:
        for name in sorted(left, key=lambda name: hash((name, os.getpid()))):
            if not claims.take(name):
                continue
            if not (out / name).exists():
                with open(out / "log", "a") as log:
                    log.write(name + "\\n")
                (out / name).touch()
            claims.release(name)
            left.discard(name)
            if len(left) % 50 == 0:
                break  # close, and open again while others are at work
"""


class Holder:
    def __init__(self, output):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(output)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, verb, name):
        self.process.stdin.write(f"{verb} {name}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self, *, kill=False):
        if kill:
            self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def holder(tmp_path):
    holder = Holder(tmp_path)
    yield holder
    holder.end(kill=True)


def test_a_name_is_taken_once_in_a_process(tmp_path):
    with Claims(tmp_path) as claims:
        assert claims.active
        assert claims.reason is None
        assert claims.take("a")
        assert not claims.take("a")
        assert claims.take("b/ö\udcff\n")
        claims.release("a")
        assert claims.take("a")
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_taken_once_among_processes(tmp_path, holder):
    assert holder.ask("take", "a") == "True"
    with Claims(tmp_path) as claims:
        assert not claims.take("a")
        assert claims.take("b")
        assert holder.ask("take", "b") == "False"
        assert holder.ask("release", "a") == "None"
        assert claims.take("a")


def test_kill_frees_the_claims(tmp_path, holder):
    assert holder.ask("take", "a") == "True"
    with Claims(tmp_path) as claims:
        assert not claims.take("a")
        holder.end(kill=True)
        assert claims.take("a")
    assert list(tmp_path.iterdir()) == []


def test_the_file_stays_while_another_process_holds_a_claim(tmp_path, holder):
    assert holder.ask("take", "a") == "True"
    with Claims(tmp_path):
        pass
    assert (tmp_path / CLAIMS_FILE).exists()
    holder.end()
    assert not (tmp_path / CLAIMS_FILE).exists()


def test_an_idle_process_moves_to_the_new_file(tmp_path, holder):
    assert holder.ask("take", "a") == "True"
    assert holder.ask("release", "a") == "None"
    with Claims(tmp_path):
        pass
    assert not (tmp_path / CLAIMS_FILE).exists()
    assert holder.ask("take", "a") == "True"
    with Claims(tmp_path) as claims:
        assert not claims.take("a")


def test_a_file_removed_by_hand_does_not_free_what_is_held(tmp_path, holder):
    assert holder.ask("take", "a") == "True"
    (tmp_path / CLAIMS_FILE).unlink()
    assert holder.ask("take", "b") == "True"
    with Claims(tmp_path) as claims:
        assert not claims.take("a")
        assert not claims.take("b")


def test_four_processes_do_each_of_200_once(tmp_path):
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)]) for _ in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    done = Counter((tmp_path / "log").read_text().split())
    assert done == {f"video{i}": 1 for i in range(200)}
    assert not (tmp_path / CLAIMS_FILE).exists()


def test_threads_share_the_claims_of_a_process(tmp_path):
    taken = []
    with Claims(tmp_path) as claims:
        threads = [
            threading.Thread(target=lambda: taken.extend(i for i in range(300) if claims.take(f"v{i}")))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(taken) == list(range(300))


def test_colliding_names_in_a_process(tmp_path, holder, monkeypatch):
    byte = claims_module._byte("shared")
    monkeypatch.setattr(claims_module, "_byte", lambda name: byte)
    with Claims(tmp_path) as claims:
        assert claims.take("a")
        assert claims.take("b")
        claims.release("a")
        assert holder.ask("take", "shared") == "False"
        claims.release("b")
        assert holder.ask("take", "shared") == "True"


def test_a_second_set_of_claims_on_one_folder_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    with Claims(tmp_path / "out"):
        with pytest.raises(UsageError, match="already writes there"):
            Claims(tmp_path / "link")
        with Claims(tmp_path):
            pass
    with Claims(tmp_path / "out"):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(claims_module.fcntl, "lockf", refuse)
        with Claims(tmp_path) as claims:
            assert not claims.active
            assert os.strerror(code) in claims.reason
            assert claims.take("a")
            assert not claims.take("a")
            claims.release("a")
            assert claims.take("a")
    assert list(tmp_path.iterdir()) == []


def test_locks_that_stop_working_are_said_and_what_is_held_stays(tmp_path, holder, monkeypatch):
    with Claims(tmp_path) as claims:
        assert claims.take("a")

        def refuse(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(claims_module.fcntl, "lockf", refuse)
        assert claims.take("b")
        assert not claims.active
        assert holder.ask("take", "a") == "False"


def test_a_claims_file_that_cannot_be_opened_is_said(tmp_path):
    (tmp_path / CLAIMS_FILE).mkdir()
    with Claims(tmp_path) as claims:
        assert "Is a directory" in claims.reason
        assert claims.take("a")


def test_without_fcntl(tmp_path, monkeypatch):
    monkeypatch.setattr(claims_module, "fcntl", None)
    with Claims(tmp_path) as claims:
        assert "no fcntl" in claims.reason
        assert claims.take("a")
        claims.release("a")
    assert list(tmp_path.iterdir()) == []
