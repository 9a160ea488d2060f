"""Reads mutated files in forked children with limits of time and memory: ``python -m tests.untrusted.server FOLDER``.

One line of JSON in, {"format", "first", "count"}; one out: outcomes, examples of each, peak_mib, seconds, cpu_seconds.
What ends a child (a signal, a hang) is counted, and the next child goes on with the next seed.
"""

import json
import os
import resource
import select
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from statten_deploy.errors import StattenError
from statten_deploy.untrusted import hdf5
from tests.untrusted.formats import FORMATS, Format
from tests.untrusted.mutations import mutate

LIMIT_SECONDS = 20.0
"""For one file."""
EXTRA_BYTES = 1 << 30
"""Address space beside what the process has."""


def outcome(chosen: Format, path: Path) -> tuple[str, str]:
    """(what happened, in whose words)."""
    try:
        chosen.read(path)
    except StattenError as error:
        text = str(error)
        good = error.exit_status == 2 and "\n" not in text and len(text) < 2000
        return ("refused" if good else "bad message"), text[:300]
    except BaseException as error:
        return f"raised {type(error).__name__}", str(error)[:300]
    return "read", ""


def child(chosen: Format, data: bytes, seeds: range, folder: Path, out: int) -> None:
    import faulthandler

    faulthandler.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    present = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (present + EXTRA_BYTES, present + EXTRA_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    path = folder / f"mutated{chosen.suffix}"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        path.write_bytes(mutate(data, seed, chosen.kinds))
        what, text = outcome(chosen, path)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
        os.write(out, (json.dumps([seed, what, text, grown]) + "\n").encode())


def run(name: str, first: int, count: int, folder: Path) -> dict[str, Any]:
    chosen = FORMATS[name]
    folder = folder / name
    folder.mkdir(exist_ok=True)
    sound = folder / f"sound{chosen.suffix}"
    if not sound.exists():
        chosen.make(sound)
        what, text = outcome(chosen, sound)
        assert what == "read" or "another recipe" in text, (name, what, text)
    data = sound.read_bytes()
    counts: Counter[str] = Counter()
    examples: dict[str, list[Any]] = {}
    peak, at, end = 0, first, first + count
    started, work = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = work.ru_utime + work.ru_stime

    def note(what: str, seed: int, text: str) -> None:
        counts[what] += 1
        if len(examples.setdefault(what, [])) < 3:
            examples[what].append([seed, text])

    while at < end:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(reader)
                child(chosen, data, range(at, end), folder, writer)
            finally:
                os._exit(0)
        os.close(writer)
        pending, hung = b"", False
        while True:
            if not select.select([reader], [], [], LIMIT_SECONDS)[0]:
                os.kill(pid, signal.SIGKILL)
                hung = True
                break
            part = os.read(reader, 1 << 16)
            if not part:
                break
            *lines, pending = (pending + part).split(b"\n")
            for line in lines:
                seed, what, text, grown = json.loads(line)
                note(what, seed, text)
                peak, at = max(peak, grown), seed + 1
        os.close(reader)
        status = os.waitpid(pid, 0)[1]
        if at < end:
            note("hung" if hung else f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "ended", at, "")
            at += 1
    seconds, work = round(time.monotonic() - started, 2), resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = round(work.ru_utime + work.ru_stime - busy, 2)
    return {"outcomes": counts, "examples": examples, "peak_mib": peak, "seconds": seconds, "cpu_seconds": busy}


def main(folder: Path) -> None:
    hdf5.read_in_child = lambda *arguments: ""  # this process is one that may die
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        task = json.loads(line)
        out.write(json.dumps(run(task["format"], task["first"], task["count"], folder)) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
