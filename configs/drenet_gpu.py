"""DRENet on 8 NVIDIA GPUs of 24 GB or more (A100, H100): bfloat16, 128 slices a step.

    bash launch/gpu/train.sh --config=configs/drenet_gpu.py --config.data.dir=data/mine \\
        --workdir=runs/drenet

With other numbers of GPUs set --config.data.batch_size to 16 times their number; the learning rate
follows. Expected of each GPU, by what the compiler plans (docs/accelerators.md): 10 GiB of memory.
"""

import ml_collections

from drenet_jax.configs import drenet


def get_config(preset: str = "paper") -> ml_collections.ConfigDict:
    config = drenet.get_config(preset)

    # 16 slices on each of 8 GPUs, in one micro-batch: batch norm sees all 128.
    config.data.batch_size = 128
    config.train.accumulate = 1

    # The tensor cores' type. Parameters, losses and batch statistics stay float32.
    config.model.dtype = "bfloat16"

    # The linear scaling rule (Goyal et al. 2017): the authors' 8e-4 for 16 slices times the batch
    # over 16, reached in 5 epochs. It follows --config.data.batch_size. Not tried with this method.
    batch_size = config.data.get_oneway_ref("batch_size").to_float()
    config.optimizer.learning_rate = batch_size * (8e-4 / 16)
    config.optimizer.warmup_epochs = 5.0

    # 32 slices a GPU; a forward pass of so many needs less than 2 GiB.
    config.evaluation.batch_size = 256

    # JAX's own 0.75 leaves a quarter of a card unused that nothing else runs on.
    config.train.memory_fraction = 0.9

    return config
