"""The command line as a process, from its first moment to its exit status: `edgeguard` and `python -m edgeguard`."""

import _signal as signal  # type: ignore[import-not-found]  # `signal` makes enums of it for some milliseconds
import _thread
import os
import sys
import time

INTERRUPTED = 130  # what shells give a program that Ctrl-C ended


def _end_at_once(number: int, frame: object) -> None:
    """Ctrl-C before there is a command that could hear it: while modules are imported it would be a traceback."""
    _last_word("interrupted")
    os._exit(INTERRUPTED)


def _last_word(line: str) -> None:
    """A line on stderr, or where that is closed on stdout, without what may not be imported yet."""
    for number in (2, 1):
        try:
            os.write(number, f"edgeguard: {line}\n".encode())
            return
        except OSError:
            continue


# Who starts a program in the background has it not hear Ctrl-C; that stays so.
_HEARS_CTRL_C = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _HEARS_CTRL_C:
    signal.signal(signal.SIGINT, _end_at_once)


def main() -> None:
    """Run the command line and exit."""
    code = 1
    try:
        _take_streams()
        code = _run()
    except KeyboardInterrupt:
        _last_word("interrupted")
        code = INTERRUPTED
    finally:
        if _HEARS_CTRL_C:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done but for cleaning up
    if code == INTERRUPTED:
        os._exit(code)  # what was interrupted in an `exec`, which dataclasses use, Python ends by the signal itself
    sys.exit(code)


def _take_streams() -> None:
    """Have something under the numbers 0, 1 and 2, so that no file that is opened gets one of them.

    A closed stdin fails at the first read, a closed stdout at the first write. Without stderr nothing is begun: what
    goes wrong could not be said.
    """
    if _take(2, os.O_WRONLY):
        _take(1, os.O_WRONLY)  # where it is closed too, nobody hears it
        _last_word_on_stdout("stderr is closed, and what goes wrong could not be said; 2>/dev/null if you mean that")
        sys.exit(1)
    if _take(1, os.O_RDONLY):
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  it is there to the end
    if _take(0, os.O_WRONLY):
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115


def _last_word_on_stdout(line: str) -> None:
    try:  # noqa: SIM105  contextlib takes its time, see above
        os.write(1, f"edgeguard: {line}\n".encode())
    except OSError:
        pass  # there is nobody left to tell


def _take(number: int, flags: int) -> bool:
    """Whether nothing was there."""
    try:
        os.fstat(number)
    except OSError:
        nothing = os.open(os.devnull, flags)
        if nothing != number:
            os.dup2(nothing, number)
            os.close(nothing)
        return True
    return False


def _run() -> int:
    """The exit status of the command."""
    from edgeguard.cli import run

    if _HEARS_CTRL_C:
        sys.unraisablehook = _hear_again
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run(sys.argv[1:])


def _hear_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Ctrl-C in a callback of native code or in a finalizer, where Python only prints it, is heard a moment later."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        _thread.start_new_thread(_interrupt_soon, ())
    else:
        sys.__unraisablehook__(unraisable)


def _interrupt_soon() -> None:
    time.sleep(0.02)  # at once it would be heard where it was lost
    _thread.interrupt_main()


if __name__ == "__main__":
    main()
