"""What the entry points share: exit codes, flag errors and quiet libraries."""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from drenet_jax.errors import InputError, StorageError
from drenet_jax.output_files import is_disk_full
from drenet_jax.storage import objects, stand_ins

# Called with an address and, for messages, the flag that it came from.
Place = Callable[..., contextlib.AbstractContextManager[Path]]

# `configs/` of the repository, which is part of the package by a link.
CONFIGS = (Path(__file__).parent / "configs").resolve()

_COMPILATION_CACHE = "JAX_COMPILATION_CACHE_DIR"

# What `main` opens and `run` closes.
_at_end = contextlib.ExitStack()

# Read by TensorFlow when it is imported; without them it prints notes on oneDNN and missing GPUs.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def run(
    main: Callable[[], None],
    define_flags: Callable[[], None],
    doc: str,
    *,
    required: Sequence[str],
    places: Mapping[str, Place | None] | None = None,
) -> None:
    """Runs an entry point: exit code 0, or 2 with one sentence on bad input.

    Args:
      main: does the work; reads its flags itself.
      define_flags: defines them. Not done when a module is imported, since entry points have flags
        of the same names.
      doc: the module's docstring, which `--help` prints above the flags.
      required: flags without which the command cannot run.
      places: flag -> what a local path stands in for where the flag names an address in a bucket:
        `stand_ins.output`, `run` or `copied`. None: the command takes addresses itself. Other flags
        than these take none.
    """
    _prepare_streams()
    sys.modules["__main__"].__doc__ = doc
    # Orbax logs warnings, and tracebacks of the errors that it raises.
    absl_logging.set_verbosity(absl_logging.FATAL)

    def checked(argv: list[str]) -> None:
        if len(argv) > 1:
            _fail(f"the argument {argv[1]!r} is not a flag; flags are written --name=value.")
        try:
            with _stand_ins(places or {}), _at_end:
                main()
            sys.stdout.flush()
        except (InputError, StorageError) as error:
            _fail(stand_ins.shown(error))
        except KeyboardInterrupt:
            print("\nstopped.", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _is_stdout_closed():
                _leave_closed_pipe()
            if is_disk_full(error):
                name = getattr(error, "filename", None)
                _fail(
                    f"the disk is full{f' ({name})' if name else ''}; free some space and call "
                    "again."
                )
            raise

    app.run(checked, flags_parser=lambda _: _parse_flags(define_flags, required))


@contextlib.contextmanager
def _stand_ins(places: Mapping[str, Place | None]) -> Iterator[None]:
    """Puts local paths in place of addresses in flags, for the block."""
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        # Fields of a config have dots in their names.
        is_known = name in places or "." in name
        if not is_known and isinstance(value, str) and objects.is_remote(value):
            raise InputError(f"--{name}={value} must be on a local disk; name a path there.")
    with contextlib.ExitStack() as stack:
        for name, place in places.items():
            flag = flags.FLAGS[name]
            values = flag.value if isinstance(flag.value, list) else [flag.value or ""]
            if place is None or not any(map(objects.is_remote, values)):
                continue
            local = [
                str(stack.enter_context(place(value, flag=f"--{name}")))
                if objects.is_remote(value)
                else value
                for value in values
            ]
            flag.value = local if isinstance(flag.value, list) else local[0]
        yield


def _prepare_streams() -> None:
    """Makes the standard streams take whatever is printed."""
    # The next file that is opened would get the descriptor of a closed stream, and with it what
    # libraries print.
    with contextlib.suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(descriptor, True)
        os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    # ASCII has no "×", and no encoding has the surrogates of file names that are not UTF-8.
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


def _leave_closed_pipe() -> NoReturn:
    """Ends silently when the output pipe was closed (`| head`)."""
    # Python would try to flush the buffer at exit, and print an error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)


def define_workers() -> None:
    """The flag --workers."""
    flags.DEFINE_integer(
        "workers", os.cpu_count() or 1, "Processes that work at once.", lower_bound=1
    )


def define_decision() -> None:
    """The flags --threshold and --aggregate, which evaluate, predict and serve share."""
    # Imported here: commands without these flags do not need NumPy.
    from drenet_jax.evaluation.aggregates import AGGREGATES

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
        "How slice probabilities are aggregated to the patient's. As the run's "
        "config.evaluation.aggregate if not given.",
    )


def define_runtime() -> None:
    """The flag --runtime, which evaluate, predict, serve and node share."""
    # Imported here, as in `define_decision`.
    from drenet_jax.exporting.runtimes import RUNTIMES

    flags.DEFINE_enum(
        "runtime",
        "auto",
        list(RUNTIMES),
        "What runs the model. onnx: ONNX Runtime on the CPU, on a graph that is exported into "
        "--workdir at the first call. auto: that where it is installed, JAX would use the CPU, and "
        "the graph was faster when it was exported; else JAX.",
    )


def define_config(name: str, what: str) -> None:
    """The flag --config; `configs/NAME.py` unless another file is given.

    Args:
      name: of the default config file.
      what: it configures, for `--help`.
    """
    _find_packaged_config()
    config_flags.DEFINE_config_file(
        "config", str(CONFIGS / f"{name}.py"), f"The config of {what}.", lock_config=True
    )


def _find_packaged_config() -> None:
    """Lets --config=configs/NAME.py name the package's config where no such file exists."""
    for i, argument in enumerate(sys.argv):
        match = re.fullmatch(r"(--?config=)?(configs/(\w+\.py))(:.*)?", argument)
        if match and not Path(match[2]).exists() and (CONFIGS / match[3]).is_file():
            sys.argv[i] = f"{match[1] or ''}{CONFIGS / match[3]}{match[4] or ''}"


def use_compilation_cache() -> None:
    """Keeps compiled programs between calls, in JAX_COMPILATION_CACHE_DIR if that is set.

    For a folder in a bucket: in a copy of it, whose new files are copied there at the end.
    """
    import jax

    given = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if given is not None:
        if objects.is_remote(given):
            local = _at_end.enter_context(stand_ins.growing(given, name=_COMPILATION_CACHE))
            jax.config.update("jax_compilation_cache_dir", str(local))
        return
    # Without a home, as in some containers, programs are compiled anew each time.
    with contextlib.suppress(RuntimeError):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "drenet_jax" / "xla"))


def _parse_flags(define_flags: Callable[[], None], required: Sequence[str]) -> list[str]:
    try:
        # ml_collections reads the command line already where a config flag is defined.
        define_flags()
        argv = list(sys.argv)
        for name in required:
            flags.mark_flag_as_required(name)
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            list(flags.FLAGS.config)  # raises if the file cannot be loaded
        for name in flags.FLAGS:
            _refuse_nul(f"--{name}", flags.FLAGS[name].value)
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
        # ml_collections raises these for a misspelt or mistyped config field.
        _fail(f"a --config field cannot be set: {_one_line(error)}; see the config file's fields.")
    except (OSError, SyntaxError, ImportError, NameError) as error:
        _fail(f"--config: {_one_line(error)}; check the config file and its path.")


def _refuse_nul(name: str, value: object) -> None:
    """Raises flags.Error if a value, as one from a flagfile or a config, holds a NUL."""
    if isinstance(value, Mapping | ConfigDict):
        for field, item in value.items():
            _refuse_nul(f"{name}.{field}", item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_nul(name, item)
    elif isinstance(value, str) and "\0" in value:
        raise flags.Error(f"{name}={value!r} holds a NUL, which no file name can")


def _one_line(error: BaseException) -> str:
    # ml_collections wraps one error in another.
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    text = str(error.args[0]) if len(error.args) == 1 else str(error)
    # ml_collections adds the traceback where a config file raises.
    flag, marker, trace = text.partition("Error whilst parsing config file:")
    if marker:
        text = flag + trace.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()).rstrip(".")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
