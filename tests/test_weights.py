"""A trained network's weights carry its classes and its normalisation, and damage to them is noticed."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import utils
from models import S9Net
from s9.files import save_tensors
from s9.weights import Preprocessing, load_weights, save_weights

CIFAR10 = Preprocessing(("cat", "dog"), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 225, 2))


@pytest.fixture
def saved(tmp_path):
    model = network()
    model.preprocessing = CIFAR10
    save_weights(model, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def test_classes_and_normalisation_come_back_with_the_weights(saved):
    model = nn.Sequential(*network())
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    load_weights(model, saved)
    assert model.preprocessing == CIFAR10
    assert not model.training
    for ours, theirs in zip(model.parameters(), network().parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_every_flipped_bit_is_noticed(saved):
    whole = saved.read_bytes()
    for number, place in enumerate(torch.linspace(0, len(whole) - 1, 120).long().tolist()):
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << number % 8]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"weights\.pt holds no valid weights .*: fetch it again"):
            load_weights(network(), saved)


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 100\n", b"PK\x03\x04"]
)
def test_what_is_no_file_of_weights_is_named(content, saved):
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pt holds no valid weights"):
        load_weights(network(), saved)


def test_weights_of_another_network_or_none_are_named(saved, tmp_path):
    with pytest.raises(ValueError, match=r"weights\.pt holds the weights of another network than S9Net"):
        load_weights(S9Net(16), saved)
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt is missing"):
        load_weights(network(), tmp_path / "nothing.pt")
    save_tensors({"weights": {}}, saved)
    with pytest.raises(ValueError, match="holds no valid weights"):
        load_weights(network(), saved)


@pytest.mark.parametrize("brightness", [1.0, 0.25], ids=["as they are", "dark"])
def test_a_picture_is_classified_as_in_training_whatever_the_normalisation(brightness, random_data, tmp_path):
    """The same probabilities as `predict` gives, from files of the test images."""
    images, tests = (
        (part.float() * brightness).to(torch.uint8) for part in (random_data.train_images, random_data.test_images)
    )
    data = random_data._replace(train_images=images, test_images=tests)
    model = network()
    utils.train(model, data, utils.Recipe(epochs=2, batch_size=16, precision="fp32"), device="cpu", verbose=False)
    assert model.preprocessing.classes == data.classes
    _, expected = utils.predict(model, data, device="cpu", precision="fp32")
    answers = []
    for number, image in enumerate(data.test_images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
        answer = utils.classify(model, tmp_path / f"{number}.png")
        answers.append([answer[name] for name in data.classes])
    np.testing.assert_allclose(np.array(answers), expected, atol=1e-4)


def test_predict_normalises_as_the_network_was_trained(random_data):
    """Also for a data set whose own statistics are others."""
    model = network()
    utils.train(model, random_data, utils.Recipe(epochs=1, batch_size=16), device="cpu", verbose=False)
    _, expected = utils.predict(model, random_data, device="cpu", precision="fp32")
    darker = random_data._replace(train_images=random_data.train_images // 4)
    _, same = utils.predict(model, darker, device="cpu", precision="fp32")
    np.testing.assert_array_equal(same, expected)
