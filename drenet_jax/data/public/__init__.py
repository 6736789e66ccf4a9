"""Public data sets: for each a function that lists its patients from the folder as published.

The functions' docstrings give layout, labels, patients, split, sites, citation and terms of use;
`python -m drenet_jax.cohort --help` prints them. All raise InputError if the layout is another.
"""

from __future__ import annotations

from drenet_jax.data.public import by_folder, covid_ct, covidx_ct

DATASETS = {
    "covid_ct_md": by_folder.covid_ct_md,
    "covid_ct": covid_ct.find_patients,
    "covidx_ct": covidx_ct.find_patients,
    "cc_ccii": by_folder.cc_ccii,
    "mosmed": by_folder.mosmed,
    "stoic2021": by_folder.stoic2021,
    "cov19_ct_db": by_folder.cov19_ct_db,
    "sars_cov_2_ct_scan": by_folder.sars_cov_2_ct_scan,
    "folders": by_folder.own_folders,
}
