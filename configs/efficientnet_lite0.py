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


def fine_tune(config: ml_collections.ConfigDict) -> None:
    """Settings to start from ImageNet weights, for any model over EfficientNet-Lite0."""
    config.init.weights = "imagenet"
    # The size that the weights were trained for.
    config.model.image_size_px = 224
    # AdamW, rising for an epoch since the heads are random, then a cosine to 0.
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.weight_decay = 1e-2
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.schedule = "cosine"
    # A step of 16 slices of `drenet_lite.py`, the larger one, needs 3.6 GiB in one piece, as XLA
    # plans it for a CPU.
    config.train.accumulate = 1
    config.evaluation.batch_size = 32
