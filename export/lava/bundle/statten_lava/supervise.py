"""The command line of run.py, and a child process for the simulation that never outlives it.

The child and all of Lava's processes are one process group. It is ended when the simulation is done, when it fails,
at the time limit, on SIGTERM, SIGINT or SIGHUP, and, by the child itself, when this process disappears.
"""

import argparse
import contextlib
import ctypes
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .files import unfinished

TIME_LIMIT = 124
"""Exit status of a run that took too long, as of coreutils' timeout."""
GRACE_SECONDS = 5.0
SOCKET_ROOM = 60
"""Python puts sockets into the temporary folder; their whole path may have about 100 characters."""
TAIL_LINES = 40
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Lava starts a process per layer; threads inside them would fight for the cores."""
SEGMENTS = "/dev/shm/psm_"  # noqa: S108 what Python calls its shared memory on Linux
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of run.py."""
    parser = argparse.ArgumentParser(prog="run.py", description="Run this network in Lava's simulator on the CPU.")
    parser.add_argument("--input", type=Path, required=True, help=".npz with x [N, C, H, W] or [N, T, C, H, W]")
    parser.add_argument("--output", type=Path, required=True, help=".npz to write: logits, spikes per layer")
    parser.add_argument("--batch", type=int, help="samples side by side (default: what fits, at most 32)")
    parser.add_argument("--limit", type=float, default=600.0, metavar="SECONDS", help="time limit (default: 600)")
    parser.add_argument("--no-spikes", action="store_true", help="do not record the spikes of the layers")
    parser.add_argument("--membranes", action="store_true", help="record the membranes as well")
    parser.add_argument(
        "--with-parent", type=Path, metavar="FOLDER", help="stop and remove FOLDER when standard input closes"
    )
    options = parser.parse_args(arguments)
    if options.batch is not None and options.batch < 1:
        parser.error(f"--batch {options.batch}: expected 1 or more")
    if not options.limit > 0:
        parser.error(f"--limit {options.limit}: expected a positive number of seconds")
    if not options.input.is_file():
        parser.error(f"--input {options.input}: no such file")
    if not options.output.absolute().parent.is_dir() or options.output.is_dir():
        parser.error(f"--output {options.output}: expected a file name in an existing folder")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the network: 0 done, 1 failed (traceback on stderr), 2 bad input, 124 time limit, 128 + n signal n."""
    options = parse(arguments)
    os.environ.update(dict.fromkeys(THREADS, "1"))
    received: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: received.append(number))
    _adopt_orphans()
    temporary = tempfile.gettempdir()
    room = len(temporary) < SOCKET_ROOM
    scratch = Path(tempfile.mkdtemp(prefix="lava-", dir=temporary if room else "/tmp"))  # noqa: S108 mkdtemp is safe
    try:
        return _supervise(options, scratch, received)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _supervise(options: argparse.Namespace, scratch: Path, received: list[int]) -> int:
    errors = scratch / "stderr"
    child = _start(options, scratch, errors)
    deadline = time.monotonic() + options.limit
    status: int | None = None
    outcome = ""
    while status is None and not outcome:
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(code)
        elif received:
            outcome = f"stopped by signal {received[0]}"
        elif time.monotonic() > deadline:
            outcome = f"stopped at the time limit of {options.limit:g} s (--limit)"
        elif options.with_parent and _closed(sys.stdin.fileno()):
            shutil.rmtree(options.with_parent, ignore_errors=True)
            outcome = "stopped: the calling process is gone"
        else:
            time.sleep(0.02)
    _end_group(child)
    unfinished(options.output, child).unlink(missing_ok=True)
    if status == 0:
        return 0
    lines = errors.read_text(encoding="utf-8", errors="replace").splitlines()
    reason = outcome or (lines[-1] if lines else f"the simulation ended with exit status {status}")
    if status != 2:
        sys.stderr.write("".join(f"{line}\n" for line in lines[-TAIL_LINES:]))
    sys.stderr.write(f"run.py: error: {reason}\n")
    if outcome:
        return 128 + received[0] if received else TIME_LIMIT
    return 2 if status == 2 else 1


def _start(options: argparse.Namespace, scratch: Path, errors: Path) -> int:
    """Fork the child; it watches a pipe whose other end only this process holds."""
    alive, held = os.pipe()
    child = os.fork()
    if child:
        os.close(alive)
        with contextlib.suppress(OSError):  # both sides do it: neither can be too late
            os.setpgid(child, child)
        return child
    status = 1
    try:
        os.close(held)
        os.setpgid(0, 0)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
        os.environ["TMPDIR"], tempfile.tempdir = str(scratch), None  # removed with the rest
        threading.Thread(target=_die_with, args=(alive, scratch, options.with_parent), daemon=True).start()
        from .worker import Job, main

        status = main(
            Job(
                bundle=Path(__file__).resolve().parents[1],
                input=options.input.absolute(),
                output=options.output.absolute(),
                scratch=scratch,
                batch=options.batch,
                spikes=not options.no_spikes,
                membranes=options.membranes,
            )
        )
        sys.stdout.flush()
    finally:
        os._exit(status)


def _die_with(alive: int, *folders: Path | None) -> None:
    """Wait until the supervisor is gone without having ended this group; then clean up and end it."""
    os.read(alive, 1)
    present = [folder for folder in folders if folder]
    for _ in range(20):  # files may still be appearing
        for folder in present:
            shutil.rmtree(folder, ignore_errors=True)
        if not any(folder.exists() for folder in present):
            break
        time.sleep(0.05)
    os.killpg(0, signal.SIGTERM)


def _closed(descriptor: int) -> bool:
    """Whether the other end of a pipe is closed."""
    readable, _, _ = select.select([descriptor], [], [], 0)
    return bool(readable) and not os.read(descriptor, 1)


def _end_group(leader: int) -> None:
    """SIGTERM, on which Python's resource tracker still removes shared memory, then SIGKILL; back when all are gone.

    SIGKILL ends the tracker too: what the group had in shared memory goes then.
    """
    shared: set[Path] = set()
    try:
        _end(leader, shared)
    finally:
        for segment in shared:
            segment.unlink(missing_ok=True)


def _end(leader: int, shared: set[Path]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        shared |= _shared_memory(leader)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, number)
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            _reap()
            try:
                os.killpg(leader, 0)
            except ProcessLookupError:
                return
            time.sleep(0.02)


def _shared_memory(leader: int) -> set[Path]:
    """Python's shared memory that the processes of a group map, from /proc; nothing where there is none."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):  # it ended meanwhile, or is somebody else's
            if os.getpgid(int(process.name)) == leader:
                words = (process / "maps").read_text(errors="replace").split()
                found |= {Path(word) for word in words if word.startswith(SEGMENTS)}
    return found


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _adopt_orphans() -> None:
    """On Linux, become the parent of Lava's processes when theirs is gone, so that none stays behind as a zombie."""
    if sys.platform == "linux":
        set_child_subreaper = 36
        libc: Any = ctypes.CDLL(None, use_errno=True)
        libc.prctl(set_child_subreaper, 1, 0, 0, 0)
