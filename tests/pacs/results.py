"""What a result says."""

from __future__ import annotations

from collections.abc import Sequence

import pydicom
import pytest

hd = pytest.importorskip("highdicom", reason="highdicom is not installed (extra `pacs`)")


def probabilities(results: Sequence[pydicom.Dataset]) -> dict[str, float]:
    """Of the labels, as the structured report among the results has them."""
    [report] = [dataset for dataset in results if dataset.Modality == "SR"]
    content = hd.sr.ComprehensiveSR.from_dataset(report).content
    [person] = content.get_image_measurement_groups()
    return {
        measurement.name.meaning.removeprefix("Probability of "): measurement.value
        for measurement in person.get_measurements()
    }
