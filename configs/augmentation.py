"""Presets of `config.augment`, and of `config.data.flip` and `config.data.brightness`.

    python -m drenet_jax.train --config=configs/drenet.py:strong --config.data.dir=data/mine \\
        --workdir=runs/mine

Every config of a model takes a preset's name behind a colon. Fields that are given on the command
line win: `--config=configs/drenet.py:strong --config.augment.cutout=0`.
"""

import ml_collections


def paper(config: ml_collections.ConfigDict) -> None:
    """Mirroring and brightness alone (authors' code)."""
    config.data.flip = True
    config.data.brightness = 0.126
    config.augment = augment = ml_collections.ConfigDict()
    # Rotation by up to so many degrees to either side, below 45; 0: none.
    augment.rotation_deg = 0.0
    # Factor on the size of what is seen, from low to high.
    augment.scale = (1.0, 1.0)
    # Height over width is multiplied by a factor from 1 / aspect to aspect; 1: as it is.
    augment.aspect = 1.0
    # Shift down and across by up to this share of the side, to either side.
    augment.shift = 0.0
    # Factor on the distance from the mean grey value, from low to high.
    augment.contrast = (1.0, 1.0)
    # Exponent of grey values in 0..1, from low to high; above 1: darker.
    augment.gamma = (1.0, 1.0)
    # Largest standard deviation of Gaussian noise, in grey values of 0..1.
    augment.noise = 0.0
    # Largest standard deviation of a Gaussian blur, in pixels.
    augment.blur_px = 0.0
    # Side of a square that is blanked, as a share of the image's; its centre is anywhere.
    augment.cutout = 0.0
    # Alpha of mixup, which mixes pairs of slices and their labels (0.2 to 0.4 are usual); needs an
    # even number of slices on a device.
    augment.mixup = 0.0


def strong(config: ml_collections.ConfigDict) -> None:
    """For few patients, whose slices a network would memorise (docs/training.md).

    Rotation, scale, aspect and shift: positioning, breathing and a lung crop that is off. Contrast,
    gamma and brightness: the window and what an 8-bit image has lost. Noise and blur: dose and
    kernel. Cutout: no single spot decides.
    """
    paper(config)
    config.data.brightness = 0.2
    config.augment.update(
        rotation_deg=15.0,
        scale=(0.8, 1.25),
        aspect=1.2,
        shift=0.08,
        contrast=(0.8, 1.25),
        gamma=(0.7, 1.4),
        noise=0.02,
        blur_px=1.0,
        cutout=0.2,
    )


PRESETS = {"paper": paper, "strong": strong}


def apply_preset(config: ml_collections.ConfigDict, name: str) -> None:
    """Fills `config.augment` and the two fields of `config.data`.

    Raises:
      ValueError: there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"the augmentation {name!r} must be one of {', '.join(PRESETS)}")
    PRESETS[name](config)
