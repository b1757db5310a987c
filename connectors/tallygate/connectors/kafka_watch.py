"""Runs a command that ends with its parent, however the parent ends.

    python -I -S kafka_watch.py TEMPORARY_FOLDER_OR_EMPTY COMMAND...

Standard input is a pipe whose other end only the parent holds, so it closes when the parent ends, be it by `kill -9`.
This process becomes the command, so the parent has the command's own process id and exit code; a small fork stays
behind as the watcher. It sleeps until one of two pipes closes: the parent's (then it ends the command: SIGTERM, SIGKILL
after `STOP_SECONDS`, and removes the temporary folder, which the parent no longer can) or the command's own (then it is
done). Linux' PR_SET_PDEATHSIG would be shorter, but it follows the thread that forked, and macOS has none.

It is run by path and imports the standard library only.
"""

import contextlib
import os
import select
import shutil
import signal
import sys

STOP_SECONDS = 10.0


def main(temporary_folder: str, command: list[str]) -> None:
    alive, held_by_command = os.pipe()
    command_pid = os.getpid()
    if os.fork() != 0:
        os.set_inheritable(held_by_command, True)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.execv(command[0], command)
    # Whatever else was inherited (the folder's lock) belongs to the command alone.
    for fd in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
    os.closerange(3, alive)
    os.closerange(alive + 1, 1024)
    watch(command_pid, alive, temporary_folder)


def watch(command_pid: int, alive: int, temporary_folder: str) -> None:
    """Returns when the command has ended; `alive` is readable (closed) from then on."""
    ready, _, _ = select.select([0, alive], [], [])
    if alive in ready:
        return
    for wanted, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, None)):
        # The command is this process's parent: while that holds, its id cannot belong to another process.
        if os.getppid() == command_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(command_pid, wanted)
        if select.select([alive], [], [], seconds)[0]:
            break
    if temporary_folder:
        shutil.rmtree(temporary_folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
