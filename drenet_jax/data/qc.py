"""The QC page of `prepare`: every picked slice with its lung outline, doubtful persons first."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

from drenet_jax.data.transform import PreparedSummary
from drenet_jax.pages import render


def qc_page(summaries: Sequence[PreparedSummary], persons: Mapping[str, Sequence[str]]) -> str:
    """One HTML file without outside links.

    Persons with the smallest share of kept slices come first: that is where lungs were missed.

    Args:
      summaries: of all persons.
      persons: split -> patient_ids.
    """
    split_of = {one: split for split, members in persons.items() for one in members}
    rows = [
        {
            "patient_id": one.person.patient_id,
            "label": one.person.label,
            "split": split_of.get(one.person.patient_id, "left out"),
            "n_kept": one.n_kept,
            "n_picked": len(one.thumbnails),
            "n_slices": one.n_slices,
            "why": one.excluded[-1][1] if not one.n_kept else "",
            "thumbnails": [
                {
                    "name": thumbnail.name,
                    "why": thumbnail.why_excluded,
                    "jpeg": base64.b64encode(thumbnail.jpeg).decode(),
                }
                for thumbnail in one.thumbnails
            ],
        }
        for one in sorted(summaries, key=_doubt)
    ]
    return render("drenet_jax.data", "qc.html.j2", rows=rows)


def _doubt(summary: PreparedSummary) -> tuple[float, str]:
    return summary.n_kept / max(1, len(summary.thumbnails)), summary.person.patient_id
