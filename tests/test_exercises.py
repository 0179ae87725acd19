import re

import pytest
import torch
from torch import nn

from models import DWSeparableConv2d, StudentNet
from s9 import exercises
from s9.results import ASSETS
from scripts.candidates import Network


class Unmended(DWSeparableConv2d):
    def forward(self, x):
        x = self.pointwise(self.depthwise(x))
        self.relu(x)
        return self.dropout(self.norm(x))


class Mended(Unmended):
    def forward(self, x):
        return self.dropout(self.norm(self.relu(self.pointwise(self.depthwise(x)))))


class Other(Unmended):
    def forward(self, x):
        return self.relu(self.norm(self.pointwise(self.depthwise(x))))


def test_mending_is_judged_by_what_is_computed():
    assert exercises.check_mended(Mended, DWSeparableConv2d).startswith("Well done")
    assert "use the value that the ReLU returns" in exercises.check_mended(Unmended, DWSeparableConv2d)
    assert "matches neither" in exercises.check_mended(Other, DWSeparableConv2d)


def test_a_planted_fault_is_found_and_a_healthy_network_is_not_blamed():
    torch.manual_seed(0)
    assert exercises.check_planted(StudentNet()).startswith("Found: discarded-output at features.0.relu")
    healthy = nn.Sequential(Network(((1, 8, 0), (1, 8, 0))))
    assert exercises.check_planted(healthy).startswith("Not yet")


@pytest.mark.parametrize(("accuracy", "verdict"), [(99.0, "Well done: 99.0 %"), (1.0, "Not yet: 1.0 %")])
def test_a_rung_is_compared_after_as_many_epochs(accuracy, verdict):
    said = exercises.check_rung([{"epoch": 3, "test_accuracy": accuracy}], "ladder-2")
    assert said.startswith(verdict)
    bar = exercises.read_history(ASSETS / "runs" / "ladder-2.jsonl")[2]["test_accuracy"]
    assert re.search(r"had (\d+\.\d) %", said)[1] == f"{bar:.1f}"
    assert "Not comparable" in exercises.check_rung([{"epoch": 99, "test_accuracy": 1.0}], "ladder-2")


def test_a_picture():
    answer = {"cat": 0.7, "dog": 0.3}
    assert exercises.check_picture(answer, "cat") == "Well done: it is correctly classified as cat (70 %)."
    assert "classified as cat (70 %)" in exercises.check_picture(answer, "dog")
    assert "none of the classes, which are cat, dog" in exercises.check_picture(answer, "tree")


def test_small_networks():
    small = Network(((1, 16, 0), (8, 48, 0), (1, 64, 0)))
    assert exercises.check_small(small).startswith("Well done")
    assert "have to go" in exercises.check_small(StudentNet(use_relu=True))
    shallow = Network(((1, 16, 0), (1, 16, 0)))
    assert "receptive field, pixels, dilated convolutions" in exercises.check_small(shallow)
