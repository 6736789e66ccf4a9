"""The paper's online server: a web page and a JSON API round a trained model.

On the page one drops a person's CT (DICOM files, pictures in the lung window, a zip, a folder or a
volume), watches the progress and reads the report. Programs use the API; /docs lists it. For
research only, not for clinical use.

Without --host only this machine reaches the server. With another --host the API asks for a token:
from the environment variable DRENET_TOKEN or the file --token_file. Uploads are removed after the
answer, answers are kept in memory for a while (see the config).

Examples:

  python -m drenet_jax.serve --workdir=runs/mine
  DRENET_TOKEN=... python -m drenet_jax.serve --workdir=runs/mine --host=0.0.0.0 --port=8080
  curl --form files=@person8.zip http://127.0.0.1:8000/api/predict
"""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from drenet_jax import cli
from drenet_jax.errors import InputError

if TYPE_CHECKING:
    from drenet_jax.serving.limits import Limits

# Of the token: a shorter one can be tried out.
_LEAST_TOKEN_LENGTH = 16


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The folder of the run.")
    flags.DEFINE_string("host", "127.0.0.1", "Where to listen; 0.0.0.0 is every network.")
    flags.DEFINE_integer(
        "port", 8000, "Where to listen; 0 is any free one.", lower_bound=0, upper_bound=65535
    )
    flags.DEFINE_bool(
        "calibrated",
        False,
        "Divide the logits by the temperature that suited the validation slices best.",
    )
    cli.define_decision()
    flags.DEFINE_string(
        "token_file", "", "A file that holds the API token, in place of DRENET_TOKEN."
    )
    cli.define_config("serve", "the server's limits")


def main() -> None:
    try:
        from drenet_jax.serving import server
    except ModuleNotFoundError as error:
        raise InputError(
            f"serve needs {error.name}, which is not installed; install the extra: "
            "pip install 'drenet_jax[serve]'."
        ) from error
    # Imported here: --help and mistyped flags need not wait for JAX.
    from drenet_jax.serving.limits import Limits
    from drenet_jax.serving.middleware import is_local
    from drenet_jax.serving.temporary_files import scratch_folder

    cli.use_compilation_cache()
    values = flags.FLAGS
    limits = Limits.from_dict(values.config.to_dict())
    token = _token(values.token_file)
    if not token and not is_local(values.host):
        raise InputError(
            f"--host={values.host} lets others in, so the API needs a token; set DRENET_TOKEN or "
            "give --token_file."
        )
    signal.signal(signal.SIGTERM, _leave)
    with server.bound_socket(values.host, values.port) as bound, scratch_folder() as folder:
        _serve(bound, folder, limits, token)


def _serve(bound: socket.socket, folder: Path, limits: Limits, token: str) -> None:
    import numpy as np

    from drenet_jax.ct.reader import Reader
    from drenet_jax.evaluation.predictor import Predictor
    from drenet_jax.evaluation.report.person_report import person_report
    from drenet_jax.serving import server
    from drenet_jax.serving.access_log import Log
    from drenet_jax.serving.app import make_app
    from drenet_jax.serving.jobs import Jobs
    from drenet_jax.serving.middleware import is_local
    from drenet_jax.serving.monitoring import Metrics

    values = flags.FLAGS
    uploads, scratch = folder / "uploads", folder / "reader"
    uploads.mkdir()
    scratch.mkdir()
    with Reader(memory_bytes=limits.reader_mib << 20, scratch=scratch) as reader:
        predictor = Predictor.load(
            values.workdir,
            calibrated=values.calibrated,
            reader=reader,
            threshold=values.threshold,
            aggregate=values.aggregate,
        )
        # Compiled now: the first visitor shall not wait for it.
        side_px = predictor.meta.ct.image_size_px
        predictor.slices(np.zeros((1, side_px, side_px), np.uint8))
        metrics, log = Metrics(), Log()
        jobs = Jobs(
            predictor.explain,
            lambda result: person_report(result.result, result.pictures, result.left_out),
            scratch,
            limits,
            metrics,
            log,
        )
        app = make_app(
            jobs,
            model=predictor.identity,
            folder=uploads,
            limits=limits,
            metrics=metrics,
            log=log,
            token=token,
            local_only=is_local(values.host),
        )
        server.run(
            app, bound, limits=limits, on_ready=lambda: _tell_ready(bound), on_end=jobs.close
        )


def _tell_ready(bound: socket.socket) -> None:
    host, port = bound.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    print(f"ready: http://{name}:{port}/ (Ctrl-C ends it)", flush=True)


def _token(file: str) -> str:
    """The token of the file or of the environment; empty if there is none.

    Raises:
      InputError: the file cannot be read, or the token is too short.
    """
    # Taken out, so that the process that reads visitors' files does not have it.
    source, token = "DRENET_TOKEN", os.environ.pop("DRENET_TOKEN", "").strip()
    if file:
        source = f"--token_file={file}"
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{source} cannot be read; check the path.") from error
    if (token or file) and (
        len(token) < _LEAST_TOKEN_LENGTH or not token.isascii() or not token.isprintable()
    ):
        raise InputError(
            f"the token of {source} must be {_LEAST_TOKEN_LENGTH} or more letters and digits; "
            "make one with: openssl rand -hex 32."
        )
    return token


def _leave(signum: int, frame: object) -> None:
    """Ends a server that is not ready yet, by way of its `finally`s."""
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__, required=("workdir",))
