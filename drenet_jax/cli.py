"""What the entry points share: exit codes, flag errors and quiet libraries."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from drenet_jax.errors import InputError
from drenet_jax.output_files import is_disk_full

# `configs/` of the repository, which is part of the package by a link.
CONFIGS = (Path(__file__).parent / "configs").resolve()

# TensorFlow reads both before its import only; without them it greets every command with a page of
# notes about oneDNN and missing GPUs.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def run(
    main: Callable[[], None],
    define_flags: Callable[[], None],
    doc: str,
    *,
    required: Sequence[str],
) -> None:
    """Runs an entry point: exit code 0, or 2 with one sentence on bad input.

    Args:
      main: does the work; reads its flags itself.
      define_flags: defines them. Not done when a module is imported, since entry points have flags
        of the same names.
      doc: the module's docstring, which `--help` prints above the flags.
      required: flags without which the command cannot run.
    """
    _prepare_streams()
    use_huge_pages()
    sys.modules["__main__"].__doc__ = doc
    # Python's last search for garbage, among all that JAX made, takes 0.3 s and finds nothing.
    atexit.register(gc.freeze)
    # Orbax warns of what it does on purpose, and prints the traceback of what it then raises.
    absl_logging.set_verbosity(absl_logging.FATAL)

    def checked(argv: list[str]) -> None:
        if len(argv) > 1:
            _fail(f"the argument {argv[1]!r} is not a flag; flags are written --name=value.")
        try:
            main()
            sys.stdout.flush()
        except InputError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            print("\nstopped.", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _is_stdout_closed():
                _leave_closed_pipe()
            if is_disk_full(error):
                place = getattr(error, "filename", None)
                _fail(
                    f"the disk is full{f' ({place})' if place else ''}; free some space and call "
                    "again."
                )
            raise

    def parsed(argv: list[str]) -> list[str]:
        return _parse_flags(argv, define_flags, required)

    app.run(checked, flags_parser=parsed)


def _prepare_streams() -> None:
    """Makes the standard streams take whatever is printed."""
    # A closed one would be given, by its number, to the next file that is opened, which would then
    # get what libraries print.
    with contextlib.suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(descriptor, True)
        os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    # ASCII has no "×", and no encoding has the halves of signs that stand for names of files that
    # are not UTF-8.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _is_stdout_closed() -> bool:
    try:
        sys.stdout.flush()
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    except BrokenPipeError:
        return True
    except (OSError, ValueError):
        return False


def _leave_closed_pipe() -> None:
    """Ends silently when the output pipe was closed (`| head`)."""
    # What is still held back would be written, and complained of, at the end of Python.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)


def use_huge_pages() -> None:
    """Starts the command anew, once, with huge pages for large arrays, where Linux grants them.

    A training step takes and returns some gigabytes; fetched in pages of 4 kB it takes a quarter
    longer (docs/performance.md). glibc reads the setting at the start of a process only; whoever
    sets `glibc.malloc.hugetlb` in GLIBC_TUNABLES themselves is left alone.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in tunables or not _grants_huge_pages():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, "glibc.malloc.hugetlb=1")))
    sys.stdout.flush()
    os.execv(sys.executable, sys.orig_argv)


def _grants_huge_pages() -> bool:
    # Under "always" they come unasked, under "never" not at all.
    try:
        granted = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except OSError:
        return False
    return "[madvise]" in granted


def define_workers() -> None:
    """The flag --workers."""
    flags.DEFINE_integer(
        "workers", os.cpu_count() or 1, "Processes that work at once.", lower_bound=1
    )


def define_decision() -> None:
    """The flags --threshold and --aggregate, which evaluate, predict and serve share."""
    # Without JAX and without NumPy's heavier friends; not needed by commands without these flags.
    from drenet_jax.evaluation.predictions import AGGREGATES

    flags.DEFINE_float(
        "threshold",
        None,
        "With two labels: a case is positive from this probability of the positive label on. As "
        "the run's config.evaluation.threshold if not given.",
    )
    flags.DEFINE_enum(
        "aggregate",
        None,
        list(AGGREGATES),
        "How a person's probabilities are made of the slices'. As the run's "
        "config.evaluation.aggregate if not given.",
    )


def define_prepare_config() -> None:
    """The flag --config of the image side; `configs/prepare.py` unless another is given."""
    define_config("prepare", "the settings of the image side")


def define_config(name: str, what: str) -> None:
    """The flag --config; `configs/NAME.py` unless another is given.

    Args:
      name: of the config file.
      what: it holds, for messages.
    """
    _name_own_config()
    config_flags.DEFINE_config_file(
        "config", str(CONFIGS / f"{name}.py"), f"{what[:1].upper()}{what[1:]}.", lock_config=True
    )


def define_training_config() -> None:
    """The flag --config of a training; the paper's `configs/drenet.py` unless another is given."""
    define_config("drenet", "the training config")


def _name_own_config() -> None:
    """Lets --config=configs/NAME.py name the config of this package where no such file is.

    So the commands that are written in the documentation work outside a checkout, too.
    """
    for i, argument in enumerate(sys.argv[1:], 1):
        flag, _, value = argument.partition("=")
        if flag in ("-config", "--config") and not value and i + 1 < len(sys.argv):
            i, flag, value = i + 1, "", sys.argv[i + 1]
        elif flag not in ("-config", "--config"):
            continue
        path, colon, options = value.partition(":")
        own = CONFIGS / Path(path).name
        if path == f"configs/{own.name}" and not Path(path).exists() and own.is_file():
            sys.argv[i] = f"{flag}{'=' if flag else ''}{own}{colon}{options}"


def use_compilation_cache() -> None:
    """Keeps compiled programs between calls, unless JAX_COMPILATION_CACHE_DIR names a place."""
    import jax

    if jax.config.jax_compilation_cache_dir is not None:
        return
    # Without a home, as in some containers, programs are compiled anew each time.
    with contextlib.suppress(RuntimeError):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "drenet_jax" / "xla"))


def _parse_flags(
    argv: list[str], define_flags: Callable[[], None], required: Sequence[str]
) -> list[str]:
    try:
        # ml_collections reads the command line already where a config flag is defined.
        define_flags()
        argv = list(sys.argv)
        for name in required:
            flags.mark_flag_as_required(name)
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            # A file that cannot be loaded is reported when the flag is first read.
            list(flags.FLAGS.config)
        _refuse_nul()
        return rest
    except SystemExit:
        # --help ends so; absl calls that a failure.
        if _is_stdout_closed():
            _leave_closed_pipe()
        sys.exit(0)
    except BrokenPipeError:
        _leave_closed_pipe()
    except flags.Error as error:
        _fail(f"{_one_line(error)}; see --help.")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # ml_collections tells a misspelt or mistyped config field so.
        _fail(f"a --config field cannot be set: {_one_line(error)}; see the config file's fields.")
    except (OSError, SyntaxError, ImportError, NameError) as error:
        _fail(f"--config: {_one_line(error)}; check the config file and its path.")
    raise AssertionError("unreachable")


def _refuse_nul() -> None:
    """Raises flags.Error if a value holds a NUL, as one from a file of flags or a config may."""
    values = {name: flags.FLAGS[name].value for name in flags.FLAGS}
    waiting = [(f"--{name}", value) for name, value in values.items()]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping | ConfigDict):
            waiting += [(f"{name}.{field}", item) for field, item in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(name, item) for item in value]
        elif isinstance(value, str) and "\0" in value:
            raise flags.Error(f"{name}={value!r} holds a NUL, which no name of a file can")


def _one_line(error: BaseException) -> str:
    # ml_collections wraps one error in another.
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    text = str(error.args[0]) if len(error.args) == 1 else str(error)
    return " ".join(text.split()).rstrip(".")


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
