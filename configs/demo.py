"""A small DRENet that two cores train on phantoms in minutes; the same method as `drenet.py`.

    python -m drenet_jax.synthesize --out=demo/phantoms
    python -m drenet_jax.prepare --cohort=demo/phantoms/cohort.csv --out=demo/data \\
        --config.image_size_px=224
    python -m drenet_jax.train --config=configs/demo.py --config.data.dir=demo/data \\
        --workdir=demo/run
"""

import pathlib
import runpy

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = runpy.run_path(str(pathlib.Path(__file__).with_name("drenet.py")))["get_config"]()

    # A quarter of the channels and half the pixels of a small ResNet.
    config.model.backbone = "resnet18"
    config.model.width = 16
    config.model.image_size_px = 224
    config.model.crop_size_px = 112
    # At half the pixels half the paper's 48 and 96 would be the same parts of the lung; a crop of
    # 24 pixels holds too little for a network of this size, so the boxes are somewhat larger.
    config.model.anchor_sizes_px = (32, 64)
    config.model.hidden = (128,)

    # From random weights: a larger learning rate than for fine-tuning, and fewer epochs.
    config.optimizer.learning_rate = 0.02
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.decay_epochs = (9,)
    config.train.epochs = 12
    config.evaluation.batch_size = 32

    return config
