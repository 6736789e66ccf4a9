"""Public data sets: one module each, whose `find_persons(root)` reads it as people have it on disk.

The modules' docstrings tell the layout, labels, persons, split, sites, citation and terms of use;
`python -m drenet_jax.cohort --help` prints them. All raise InputError if the root is not laid out
so.
"""

from __future__ import annotations

from drenet_jax.data.public import (
    cc_ccii,
    cov19_ct_db,
    covid_ct,
    covid_ct_md,
    covidx_ct,
    folders,
    mosmed,
    sars_cov_2_ct_scan,
    stoic2021,
)

DATASETS = {
    "covid_ct_md": covid_ct_md,
    "covid_ct": covid_ct,
    "covidx_ct": covidx_ct,
    "cc_ccii": cc_ccii,
    "mosmed": mosmed,
    "stoic2021": stoic2021,
    "cov19_ct_db": cov19_ct_db,
    "sars_cov_2_ct_scan": sars_cov_2_ct_scan,
    "folders": folders,
}
