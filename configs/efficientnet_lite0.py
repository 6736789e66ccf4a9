"""EfficientNet-Lite0 on the whole image: a small network of today beside the paper's rivals.

The same as `resnet50.py` with another network.
"""

import ml_collections

from drenet_jax.configs import resnet50


def get_config(preset: str = "paper") -> ml_collections.ConfigDict:
    config = resnet50.get_config(preset)
    config.model.name = "efficientnet_lite0"
    # Channels of the stem, as published.
    config.model.width = 32
    # As published.
    config.model.dropout = 0.2
    return config
