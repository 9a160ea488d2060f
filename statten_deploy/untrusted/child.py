"""Reading in a process of its own, limited in time and memory: for libraries that damage makes hang or crash."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from statten_deploy.errors import InputError, UnsupportedError
from statten_deploy.untrusted.limits import MEMORY_VARIABLE, SECONDS_VARIABLE, max_bytes, max_seconds

ROOT = Path(__file__).resolve().parents[2]
"""Where the package lies, for the child."""
START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from statten_deploy.untrusted.child import child; "
    "sys.exit(child(*sys.argv[2:]))"
)
OVERHEAD_BYTES = 1 << 28
"""What a library may take beside the contents of a file."""


def read_in_child(module: str, path: Path, arguments: list[str], kind: str) -> str:
    """Run ``module.main(path, *arguments)`` in a process of its own; what it returns.

    Raises:
        InputError: what the child raised, or it took too long, too much memory, or was ended by a signal.
    """
    seconds = max_seconds()
    command = [sys.executable, "-P", "-c", START, str(ROOT), module, str(path.resolve()), *arguments]
    try:
        done = subprocess.run(  # noqa: S603 - our own script under the same Python
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            # OpenBLAS reserves address space for each thread, and that is limited there
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", MEMORY_VARIABLE: str(max_bytes())},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{path}: not a readable {kind} file (not read within {seconds:g} s; where the file is sound and the "
            f"machine slow, raise {SECONDS_VARIABLE})"
        ) from None
    if done.returncode == 0:
        return done.stdout.decode("utf-8", "replace")
    told = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
    if done.returncode == InputError.exit_status:
        name, _, message = told[-1].partition(": ")
        kind_of = UnsupportedError if name == UnsupportedError.__name__ else InputError
        raise kind_of(message.replace(str(path.resolve()), str(path), 1))
    reason = f"the reader was ended by signal {-done.returncode}" if done.returncode < 0 else told[-1][:160]
    raise InputError(f"{path}: not a readable {kind} file ({reason}); copy it again")


def limit_memory(extra: int) -> None:
    """From now on this process may take `extra` bytes more than it has."""
    try:
        import resource

        with Path("/proc/self/statm").open() as stream:
            present = int(stream.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = present + OVERHEAD_BYTES + extra
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # not on this system: time is limited all the same


def child(module: str, *arguments: str) -> int:
    """What the process runs: 0 with a text on stdout; else the reason last on stderr."""
    try:
        sys.stdout.write(import_module(module).main(*arguments))
    except InputError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return InputError.exit_status
    except MemoryError:
        sys.stderr.write("takes more memory than its contents declare\n")
        return 1
    except BaseException as error:  # panics of Rust libraries are no Exception
        sys.stderr.write(f"{' '.join(str(error).split()) or type(error).__name__}\n")
        return 1
    return 0
