"""A DICOM node around a trained model: a PACS or a scanner sends studies, results go back.

It answers C-ECHO and takes chest CT by C-STORE. A study is read once it is complete; a structured
report with the boxes, and captures of the slices, are sent to --config.destination. With --dicomweb
it also watches a DICOMweb server: its new CT studies are read, and their results stored there. For
research only, not for clinical use.

The node listens on this machine only unless --host says otherwise; then --config.senders must list
who may send. What it has accepted is on disk (--spool): it may be killed at any moment. Its status
page is http://127.0.0.1:8081/ (--config.status_port), with /healthz and /metrics.

Examples:

  python -m drenet_jax.node --workdir=runs/mine --aet=DRENET --port=11112 \\
      --config.destination=ORTHANC@127.0.0.1:4242
  python -m drenet_jax.node --workdir=runs/mine --aet=DRENET --port=11112 --host=0.0.0.0 \\
      --config=hospital.py
  python -m drenet_jax.node --workdir=runs/mine --dicomweb=http://127.0.0.1:8042/dicom-web
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from absl import flags

from drenet_jax import cli
from drenet_jax.errors import InputError
from drenet_jax.storage import stand_ins


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The folder of the run.")
    flags.DEFINE_string("aet", "DRENET", "The AE title of this node.")
    flags.DEFINE_string("host", "127.0.0.1", "The address to listen on; 0.0.0.0 is every network.")
    flags.DEFINE_integer(
        "port", 11112, "The port to listen on; 0 is any free one.", lower_bound=0, upper_bound=65535
    )
    flags.DEFINE_string(
        "spool",
        "",
        "The folder of received studies and the queue; if empty, drenet_jax/AET below "
        "XDG_STATE_HOME or ~/.local/state.",
    )
    flags.DEFINE_string("dicomweb", "", "The URL of a DICOMweb server to watch.")
    flags.DEFINE_bool(
        "calibrated",
        False,
        "Divide the logits by the temperature fitted on the validation slices.",
    )
    cli.define_decision()
    cli.define_runtime()
    cli.define_config("node", "the node: its peers and limits")


def main() -> None:
    # Imported here: --help needs neither JAX nor the extra.
    try:
        from drenet_jax.pacs import node
        from drenet_jax.pacs.settings import NodeSettings, check_ae_title
    except ModuleNotFoundError as error:
        raise InputError(
            f"node needs {error.name}, which is not installed; install the extra: "
            "pip install 'drenet_jax[node]'."
        ) from error
    from drenet_jax.exporting.runtimes import load_predictor
    from drenet_jax.output_files import locked_folder

    values = flags.FLAGS
    settings = NodeSettings.from_dict(values.config.to_dict())
    check_ae_title(values.aet, "--aet")
    if values.host not in ("127.0.0.1", "::1", "localhost") and not settings.senders:
        raise InputError(
            f"--host={values.host} can be reached by others; list who may send in "
            "--config.senders, as AET@address."
        )
    spool = Path(values.spool) if values.spool else _default_spool(values.aet)
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked_folder(spool, name="lock", use="used", flag="--spool"))
        spool.chmod(0o700)
        predictor = load_predictor(
            values.workdir,
            runtime=values.runtime,
            calibrated=values.calibrated,
            threshold=values.threshold,
            aggregate=values.aggregate,
            prepare_jax=cli.use_compilation_cache,
        )
        node.run(
            predictor,
            spool,
            settings,
            ae_title=values.aet,
            host=values.host,
            port=values.port,
            dicomweb_url=values.dicomweb,
        )


def _default_spool(ae_title: str) -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "drenet_jax" / ae_title


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__, required=("workdir",), places={"workdir": stand_ins.run})
