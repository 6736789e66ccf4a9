"""DRENet on a TPU slice of 8 chips (v5e-8, v6e-8): bfloat16, 128 slices a step.

    sky jobs launch launch/cloud/sky-tpu.yaml --env DATA=gs://BUCKET/data \\
        --env WORKDIR=gs://BUCKET/runs/drenet

With other numbers of chips set --config.data.batch_size to 16 times their number; the learning rate
follows. Expected of each chip, by what the compiler plans (docs/accelerators.md): 9 GiB of memory.
"""

import ml_collections

from drenet_jax.configs import drenet_gpu


def get_config(preset: str = "paper") -> ml_collections.ConfigDict:
    # Batch, learning rate and types are those for GPUs.
    config = drenet_gpu.get_config(preset)

    # Of GPUs only: a TPU's memory is taken as it is needed.
    config.train.memory_fraction = 0.75

    return config
