"""DRENet in JAX: a patient's diagnosis (COVID-19, bacterial pneumonia, healthy) from a chest CT.

For research only, not for clinical use.  In a notebook::

    import drenet_jax
    model = drenet_jax.load("runs/demo")
    model.person("path/to/dicom_folder")
"""

from __future__ import annotations

import typing

from drenet_jax.version import __version__

if typing.TYPE_CHECKING:
    import os

    from drenet_jax.evaluation.pipeline import PersonPipeline

__all__ = ["__version__", "load"]


def load(
    workdir: str | os.PathLike[str],
    *,
    runtime: str = "auto",
    calibrated: bool = False,
    threshold: float | None = None,
    aggregate: str | None = None,
) -> PersonPipeline:
    """The trained model of `workdir`, ready to predict (see `load_predictor`).

    Raises:
      InputError: `workdir` holds no checkpoint that can be used, or none with a temperature; or
        the threshold or the aggregate cannot be used with its labels.
    """
    # Imported here so that `import drenet_jax.ct` brings in neither JAX nor Orbax.
    from drenet_jax.evaluation.pipeline import PersonPipeline
    from drenet_jax.exporting.runtimes import load_predictor

    predictor = load_predictor(
        workdir,
        runtime=runtime,
        calibrated=calibrated,
        threshold=threshold,
        aggregate=aggregate,
    )
    return PersonPipeline(predictor)
