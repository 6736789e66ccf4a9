"""The paper's online server: a web page and a JSON API around a trained model.

Drop the CT of a patient on the page (DICOM files, slices as images in the lung window, a zip, a
folder or a volume), watch the progress and read the report. Programs use the API, listed under
/docs. For research only, not for clinical use.

Without --host the server can be reached from this machine only. With another --host the API needs a
token: from the environment variable DRENET_TOKEN or the file --token_file. Uploads are removed
after the answer, answers are kept in memory for a while (see the config).

Examples:

  python -m drenet_jax.serve --workdir=runs/mine
  DRENET_TOKEN=... python -m drenet_jax.serve --workdir=runs/mine --host=0.0.0.0 --port=8080
  curl --form files=@person8.zip http://127.0.0.1:8000/api/predict
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import socket
from pathlib import Path

import numpy as np
from absl import flags

from drenet_jax import cli
from drenet_jax.errors import InputError
from drenet_jax.storage import stand_ins

# A shorter token can be guessed.
_MIN_TOKEN_LENGTH = 16


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The folder of the run.")
    flags.DEFINE_string("host", "127.0.0.1", "The address to listen on; 0.0.0.0 is every network.")
    flags.DEFINE_integer(
        "port", 8000, "The port to listen on; 0 is any free one.", lower_bound=0, upper_bound=65535
    )
    flags.DEFINE_bool(
        "calibrated",
        False,
        "Divide the logits by the temperature fitted to the validation slices.",
    )
    cli.define_decision()
    cli.define_runtime()
    flags.DEFINE_string("token_file", "", "A file with the API token, in place of DRENET_TOKEN.")
    cli.define_config("serve", "the server's limits")


def main() -> None:
    # Imported here: --help needs neither JAX nor the extra.
    try:
        from drenet_jax.serving import app, jobs, middleware, server
    except ModuleNotFoundError as error:
        raise InputError(
            f"serve needs {error.name}, which is not installed; install the extra: "
            "pip install 'drenet_jax[serve]'."
        ) from error
    from drenet_jax.ct.reader import Reader
    from drenet_jax.evaluation.person_report import person_report
    from drenet_jax.evaluation.pipeline import PersonPipeline
    from drenet_jax.exporting.runtimes import load_predictor
    from drenet_jax.private_log import log_to
    from drenet_jax.serving.limits import Limits

    values = flags.FLAGS
    limits = Limits.from_dict(values.config.to_dict())
    token = _token(values.token_file)
    is_local = middleware.is_local(values.host)
    if not token and not is_local:
        raise InputError(
            f"--host={values.host} can be reached by others, so the API needs a token; set "
            "DRENET_TOKEN or give --token_file."
        )
    signal.signal(signal.SIGTERM, _exit)
    log_to(logging.StreamHandler())
    with contextlib.ExitStack() as stack:
        bound = stack.enter_context(server.bound_socket(values.host, values.port))
        folder = stack.enter_context(server.temporary_folder())
        uploads, scratch = folder / "uploads", folder / "reader"
        uploads.mkdir()
        scratch.mkdir()
        reader = stack.enter_context(Reader(memory_bytes=limits.reader_mib << 20, scratch=scratch))
        predictor = load_predictor(
            values.workdir,
            runtime=values.runtime,
            calibrated=values.calibrated,
            threshold=values.threshold,
            aggregate=values.aggregate,
            prepare_jax=cli.use_compilation_cache,
        )
        # Compile now, not during the first request.
        side_px = predictor.meta.ct.image_size_px
        predictor.slices(np.zeros((1, side_px, side_px), np.uint8))
        queue = jobs.Jobs(
            functools.partial(PersonPipeline(predictor, reader).predict, with_hu=True),
            lambda result: person_report(result.result, result.pictures, result.left_out),
            scratch,
            limits,
        )
        application = app.make_app(
            queue,
            model=predictor.identity,
            folder=uploads,
            limits=limits,
            token=token,
            local_only=is_local,
        )
        server.Server(
            application,
            limits=limits,
            on_ready=lambda: _print_address(bound),
            on_shutdown=queue.close,
        ).run([bound])


def _print_address(bound: socket.socket) -> None:
    host, port = bound.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    print(f"ready: http://{name}:{port}/ (Ctrl-C ends it)", flush=True)


def _token(file: str) -> str:
    """The token of the file or of the environment; empty if there is none.

    Raises:
      InputError: the file cannot be read, or the token is too short.
    """
    # Removed, so that the process that decodes uploads does not have it.
    source, token = "DRENET_TOKEN", os.environ.pop("DRENET_TOKEN", "").strip()
    if file:
        source = f"--token_file={file}"
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{source} cannot be read; check the path.") from error
    if (token or file) and (
        len(token) < _MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable()
    ):
        raise InputError(
            f"the token of {source} must be {_MIN_TOKEN_LENGTH} or more letters and digits; "
            "make one with: openssl rand -hex 32."
        )
    return token


def _exit(signum: int, frame: object) -> None:
    """Ends a server that is not ready yet, with its `finally` blocks."""
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__, required=("workdir",), places={"workdir": stand_ins.run})
