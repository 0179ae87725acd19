"""All that the notebook uses, in one place; each part has a module of its own."""

# ruff: noqa: F401 - imported to be passed on
from s9.batches import Batches, augmented_versions, channel_statistics
from s9.data import Data, DataError, hold_out, subset
from s9.figures import (
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
from s9.loading import CIFAR10_CLASSES, load_data
from s9.randomness import epoch_seed
from s9.recipes import SEED_RECIPE, Recipe, default_device, resolve_precision
from s9.results import read_history
from s9.runs import RunError, environment
from s9.training import classify, count_parameters, history_log, predict, train
