import io
import xml.etree.ElementTree as ET

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch import nn

import utils
from models import StudentNet
from netreview.rates import RangeTest
from s9 import architecture
from s9 import lesson_figures as figures
from s9.augmented_batches import augmented_versions
from s9.data import Data

CAPTION = "SomeNet on some data, 12.3 %"


@pytest.fixture
def history():
    return [
        {
            "epoch": epoch, "train_loss": 2 / epoch, "test_loss": 2.1 / epoch, "train_accuracy": 30.0 + epoch,
            "test_accuracy": 25.0 + epoch,
        }
        for epoch in range(1, 6)
    ]  # fmt: skip


def visible(figure):
    return [axis for axis in figure.axes if axis.get_images()]


def check(figure, *titles):
    """It has both title lines, can be drawn, and is not left open for pyplot to show a second time."""
    for text in (*titles, CAPTION):
        assert text in figure.get_suptitle()
    figure.canvas.draw()
    assert not plt.get_fignums()


def test_samples_are_of_their_class(digits):
    figure = figures.plot_samples(digits, CAPTION)
    check(figure, "10 classes")
    axes = visible(figure)
    assert len(axes) == 50
    for start, name in zip(range(0, 50, 5), digits.classes, strict=True):
        assert axes[start].get_title("left") == name
        members = digits.train_images[digits.train_labels == digits.classes.index(name)]
        for axis in axes[start : start + 5]:
            shown = torch.as_tensor(np.asarray(axis.get_images()[0].get_array())).permute(2, 0, 1)
            assert (members == shown).all((1, 2, 3)).any()


def test_samples_of_an_odd_number_of_classes(digits):
    three = digits.train_labels < 3
    data = digits._replace(
        train_images=digits.train_images[three], train_labels=digits.train_labels[three], classes=("0", "1", "2")
    )
    assert len(visible(figures.plot_samples(data, CAPTION))) == 15


def test_augmentations(digits):
    versions = augmented_versions(digits, utils.Recipe(crop=4), count=8)
    figure = figures.plot_augmentations(versions, CAPTION)
    check(figure, "version")
    assert len(visible(figure)) == 9


def test_performance_draws_the_history(history):
    figure = utils.plot_performance(history, CAPTION)
    check(figure, "30.0 %")
    drawn = {axis.get_title(): axis.lines[0].get_ydata().tolist() for axis in figure.axes}
    assert drawn == {
        f"{word} {quantity}": [record[f"{split}_{quantity}"] for record in history]
        for word, split in (("training", "train"), ("test", "test"))
        for quantity in ("loss", "accuracy")
    }


def test_ladder_draws_bars_gains_and_curves(history):
    worse = [record | {"test_accuracy": record["test_accuracy"] - 2} for record in history]
    figure = figures.plot_ladder({"as it was": history, "something worse": worse}, CAPTION)
    check(figure, "From 30.0 % to 28.0 %")
    bars, curves = figure.axes
    assert [bar.get_width() for bar in bars.patches] == [30.0, 28.0]
    assert [text.get_text() for text in bars.texts] == ["30.0 %", "28.0 %  (-2.0)"]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["as it was", "something worse"]
    drawn = [line.get_ydata().tolist() for line in curves.lines]
    assert drawn == [[record["test_accuracy"] for record in records] for records in (history, worse)]


def test_search_draws_each_trial_where_it_belongs():
    rows = [
        {"candidate": "small", "held_out_accuracy": 80.0, "seconds_an_epoch": 50.0, "parameters": 100_000},
        {"candidate": "large", "held_out_accuracy": 84.3, "seconds_an_epoch": 90.0, "parameters": 190_000},
    ]
    figure = figures.plot_search(rows, CAPTION, chosen="large")
    check(figure, "2 candidates; large was taken: 84.3 % of held-out images right at 90 s an epoch")
    dots = figure.axes[0].collections
    assert [dot.get_offsets().tolist() for dot in dots] == [[[50.0, 80.0]], [[90.0, 84.3]]]
    assert dots[0].get_sizes() < dots[1].get_sizes()
    assert dots[0].get_facecolor().tolist() != dots[1].get_facecolor().tolist()
    assert [text.get_text() for text in figure.axes[0].texts] == ["small", "large"]


def test_attention_lies_over_the_images(digits):
    maps = np.linspace(0, 1, 3 * 32 * 32).reshape(3, 32, 32)
    figure = figures.plot_attention(digits.test_images[:3], maps, ["a", "b", "c"], CAPTION)
    check(figure, "Where the network looks")
    upper, lower = figure.axes[:3], figure.axes[3:]
    assert [axis.get_title() for axis in upper] == ["a", "b", "c"]
    for axis, heat in zip(lower, maps, strict=True):
        np.testing.assert_array_equal(axis.get_images()[1].get_array(), heat)


def test_accuracies_draw_both_runs(history):
    check(utils.plot_accuracies(history, CAPTION), "35.0 %", "30.0 %")
    reference = [
        {"epoch": 1, "train_accuracy": 1.0, "test_accuracy": 2.0},
        {"epoch": 2, "train_accuracy": 3.0, "test_accuracy": 4.0},
    ]
    figure = utils.plot_accuracies(history, CAPTION, reference)
    check(figure, "4.0 %")
    drawn = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].lines}
    assert drawn == {
        "the student's test accuracy": [2.0, 4.0],
        "the student's training accuracy": [1.0, 3.0],
        "test accuracy": [record["test_accuracy"] for record in history],
        "training accuracy": [record["train_accuracy"] for record in history],
    }


def test_accuracies_say_whose_the_other_run_is(history):
    figure = utils.plot_accuracies(history, CAPTION, history, whose="StudentNet's")
    check(figure, "; StudentNet's at 30.0 %")
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert labels == [
        "StudentNet's test accuracy",
        "test accuracy",
        "StudentNet's training accuracy",
        "training accuracy",
    ]


def test_figures_stand_side_by_side():
    drawn = [plt.figure(figsize=size, dpi=50) for size in ((2, 3), (4, 1))]
    plt.close("all")  # as all drawn of this module are
    drawn[1].patch.set_facecolor("red")
    both = np.asarray(Image.open(io.BytesIO(figures.beside(*drawn))))
    assert both.shape == (150, 100 + 40 + 200, 3)
    assert (both[:, :140] == 255).all()
    assert (both[:50, 140:] == (255, 0, 0)).all()
    assert (both[50:, 140:] == 255).all()


def test_mistakes_are_the_surest_ones(digits):
    labels = digits.test_labels.numpy()
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(10), len(labels))
    predicted = probabilities.argmax(1)
    figure = utils.plot_mistakes(digits, predicted, probabilities, CAPTION, rows=2, columns=3)
    wrong = [index for index in range(len(labels)) if predicted[index] != labels[index]]
    check(figure, f"{len(wrong)} of {len(labels)} are wrong")
    surest = sorted(wrong, key=lambda index: -probabilities[index].max())[:6]
    for axis, index in zip(visible(figure), surest, strict=True):
        guess, truth = axis.get_title().splitlines()
        assert guess == f"{predicted[index]} {100 * probabilities[index].max():.0f} %"
        assert truth == f"is {labels[index]}"


def test_mistakes_of_a_flawless_network(digits):
    perfect = np.eye(10)[digits.test_labels]
    figure = utils.plot_mistakes(digits, digits.test_labels.numpy(), perfect, CAPTION)
    check(figure, "0 of 360")
    assert not visible(figure)


def test_confusion_matrix_names_the_worst_confusion():
    true, predicted = [0, 0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1, 0, 0, 2]
    matrix = confusion_matrix(true, predicted, labels=range(3))
    figure = utils.plot_confusion_matrix(matrix, ("ant", "bee", "cow"), CAPTION)
    check(figure, "67 % of class 'cow' are called 'ant'")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["3\n75%", "1\n25%", "0\n0%", "0\n0%", "2\n100%", "0\n0%", "2\n67%", "0\n0%", "1\n33%"]


def test_receptive_field_squares_are_to_scale(digits):
    figure = figures.plot_receptive_field([("a", 3), ("b", 41)], digits.train_images[0], CAPTION)
    check(figure, "41 pixels a side")
    squares = [(patch.get_x(), patch.get_width()) for patch in figure.axes[0].patches]
    assert squares == [(14.5, 3), (-4.5, 41)]


def test_templates_are_the_columns_of_the_matrix():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(3 * 32 * 32, 3))
    figure = figures.plot_templates(matrix, ("ant", "bee", "cow"), CAPTION)
    check(figure, "3 blurred pictures")
    assert [axis.get_title() for axis in visible(figure)] == ["ant", "bee", "cow"]
    shown = np.asarray(visible(figure)[1].get_images()[0].get_array()).astype(float)
    weights = matrix[:, 1].reshape(3, 32, 32).transpose(1, 2, 0)
    np.testing.assert_allclose(shown / 127.5 - 1, weights / np.abs(weights).max(), atol=0.005)


def test_logits_are_drawn_against_each_other():
    matrix = np.random.default_rng(0).normal(size=(5, 4))
    figure = figures.plot_logits_against(matrix + 0.001, matrix, CAPTION)
    check(figure, "20 logits", "1e-03")
    points = figure.axes[0].lines[0]
    assert points.get_xdata().tolist() == matrix.ravel().tolist()
    assert points.get_ydata().tolist() == (matrix + 0.001).ravel().tolist()


def test_learning_rate_range_marks_both_rates():
    curve = RangeTest([0.01, 0.1, 1.0], [2.3, 2.2, 1.0], 0.1, None)
    figure = figures.plot_learning_rate_range(curve, 0.03, CAPTION)
    check(figure, "0.1", "0.03")
    drawn = {line.get_label(): list(line.get_xdata()) for line in figure.axes[0].lines[1:]}
    assert drawn == {"given": [0.03, 0.03], "falls fastest": [0.1, 0.1]}
    assert figure.axes[0].lines[0].get_ydata().tolist() == curve.losses


ODD_NAMES = ("$a_1$", "two words", "\\frac{", "猫", "собака", "x" * 60, "a$b")


@pytest.fixture(params=[2, 20, 200])
def odd_classes(request) -> Data:
    """Noise of any number of classes, with names that are no plain words."""
    count, generator = request.param, torch.Generator().manual_seed(0)
    names = (ODD_NAMES + tuple(f"class-{number:03}" for number in range(count)))[:count]
    images = torch.randint(0, 256, (2 * count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(2 * count) % count
    return Data(images, labels, images, labels, names, "se$t$", "made for tests")


def test_figures_of_any_number_of_classes_with_any_names_can_be_read(odd_classes, recwarn):
    count = len(odd_classes.classes)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(count), 2 * count)
    predicted = probabilities.argmax(1)
    matrix = np.ones((count, count), dtype=int)
    matrix[1, 0] = 9 * count
    drawn = (
        figures.plot_samples(odd_classes, CAPTION),
        figures.plot_templates(np.ones((3072, count)), odd_classes.classes, CAPTION),
        utils.plot_mistakes(odd_classes, predicted, probabilities, CAPTION),
        utils.plot_confusion_matrix(matrix, odd_classes.classes, CAPTION),
    )
    for figure in drawn:
        check(figure)
        assert max(figure.get_size_inches()) < 15
        assert figure.axes[0].title.get_parse_math() is False
    assert not [str(warning.message) for warning in recwarn]
    samples, _, _, confusion = drawn
    assert "'two words' are called '$a_1$'" in confusion.get_suptitle()
    assert len(visible(samples)) == 2 * min(count, 20)
    assert ("20 of 200 classes" if count > 20 else f"{count} classes") in samples.get_suptitle()
    pairs = [label.get_text() for label in confusion.axes[min(1, count // 21)].get_yticklabels()]
    assert pairs[0] == ("two words → $a_1$" if count > 20 else "$a_1$")
    assert len(pairs) == min(count, 20)


def test_names_in_figures():
    long, sentence = figures.names_to_draw(("n01443537 goldfish, Carassius auratus", "a sentence"))
    assert (len(long), long[:7], long[-8:], sentence) == (16, "n014435", " auratus", "a sentence")
    assert figures.names_to_draw(("a", "\U0010fffd")) == ["a", "class 1"]  # no font has a private letter


# ------------------------------------------------------------------------------------------------ architecture picture


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    paths = {}
    for use_relu in (False, True):
        torch.manual_seed(0)
        paths[use_relu] = tmp_path_factory.mktemp("onnx") / "deep" / "net.onnx"
        model = StudentNet(use_relu)
        architecture.export_onnx(model, paths[use_relu])
        assert model.training  # left as it was
    return paths


def texts_of(svg: str) -> list[str]:
    return [
        element.text.replace("\xa0", " ") for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_export_computes_the_same_for_any_batch(exported):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(exported[True], providers=["CPUExecutionProvider"])
    torch.manual_seed(0)
    model = StudentNet(use_relu=True).eval()
    for count in (1, 5):
        images = torch.randn(count, 3, 32, 32)
        (logits,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(logits, model(images).detach(), rtol=1e-4, atol=1e-4)


def test_export_refuses_another_network(tmp_path, monkeypatch):
    class Forgetful(nn.Linear):
        """Computes something else once it is exported."""

        def forward(self, x):
            return super().forward(x.flatten(1)) * (1.0 if torch.compiler.is_compiling() else 2.0)

    with pytest.raises(RuntimeError, match="not the same network"):
        architecture.export_onnx(Forgetful(3072, 10), tmp_path / "net.onnx")


def test_picture_shows_every_layer_and_no_relu_where_none_is_applied(exported):
    texts = texts_of(architecture.draw_onnx(exported[False]))
    assert sum("depthwise 3×3" in text for text in texts) == 8
    assert sum("pointwise 1×1" in text for text in texts) == 9
    assert sum("BatchNorm" in text for text in texts) == 8
    assert "conv 3×3, 64 → 32, stride 2, dilation 2   (18,432)" in texts
    assert texts.count("conv 3×3, 128 → 64, stride 2   (73,728)") == 2
    assert sum(text.startswith("DWSeparableConv2d") for text in texts) == 8
    parameters = [int(text.split("(")[1].rstrip(")").replace(",", "")) for text in texts if "(" in text]
    assert sum(parameters) == 214_651
    assert not any("Relu" in text for text in texts)
    assert sum("Relu" in text for text in texts_of(architecture.draw_onnx(exported[True]))) == 8
