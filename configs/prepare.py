"""How `prepare` turns a series into lung crops (paper 2.2.1).

Used by `python -m drenet_jax.prepare` unless `--config` names another file; single fields are set
as `--config.image_size_px=224`. The values are stored with the data and with every checkpoint
trained on it, so `predict` prepares a new person in the same way.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # Slices picked from a series, evenly spaced: floor(i * n / 15), i = 0..14 (paper 2.2.1).
    config.slices_per_person = 15

    # The lung window, in HU. The paper photographs at level -700, width 1000-1500; -600/1500 is
    # the window that most readers and viewers use, and shows consolidation too.
    config.window_level_hu = -600.0
    config.window_width_hu = 1500.0

    # A picked slice is kept if its lung area is at least this share of that person's largest. The
    # paper's "less than 50 percent of the total image" cannot be meant literally (lungs fill 20 to
    # 32% of a CT image at most); this reading keeps about as many slices as the paper kept.
    config.min_area_share = 0.5

    # Height and width of the lung crop, in pixels (paper Fig. 1: 448).
    config.image_size_px = 448

    # Shifted copies of the lung that may fill the blank (the authors' code: 40).
    config.fill_copies = 40

    return config
