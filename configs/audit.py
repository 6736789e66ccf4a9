"""How the audit looks for shortcuts (docs/audit.md).

Used by `python -m drenet_jax.audit` unless `--config` names another file, and by `prepare` for its
warning.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # Folds by person, stratified by label, and the seed of who is in which.
    config.folds = 5
    config.seed = 0

    # Height and width in pixels to which crops are resized for the frozen network (that of its own
    # training on ImageNet).
    config.feature_size_px = 224
    # Crops in a forward pass of it.
    config.batch_size = 32
    # C of the logistic regressions (the inverse of the penalty), after standardization: of the
    # 1,280 features of the network and the 1,027 of the mask, and of the few dozen of the others.
    # Fixed, so that nothing is chosen on the persons that are scored.
    config.c_features = 0.01
    config.c_facts = 0.3

    # How far below the model's AUC a control may lie and still predict the labels as well as the
    # model does: differences this small do not matter to a reader.
    config.margin = 0.05

    # `prepare` warns of a fact of the files that separates a label's persons from the others with
    # at least this AUC (1/2: not at all), and at most this p-value, corrected for their number.
    config.fact_auc = 0.65
    config.fact_p_value = 0.001

    return config
