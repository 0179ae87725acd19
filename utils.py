"""All that the notebook uses, in one place; each part has a module of its own."""

# ruff: noqa: F401 - imported to be passed on
from batches import Batches, augmented_versions, channel_statistics
from checkpoints import RunError, environment
from dataset import CIFAR10_CLASSES, Data, DataError, hold_out, load_data, subset
from figures import (
    beside,
    draw_onnx,
    export_onnx,
    plot_accuracies,
    plot_attention,
    plot_augmentations,
    plot_confusion_matrix,
    plot_ladder,
    plot_learning_rate_range,
    plot_logits_against,
    plot_mistakes,
    plot_performance,
    plot_receptive_field,
    plot_samples,
    plot_search,
    plot_templates,
    surest_mistakes,
)
from randomness import epoch_seed
from recipe import SEED_RECIPE, Recipe, default_device, resolve_precision
from training import classify, count_parameters, history_log, predict, read_history, train
