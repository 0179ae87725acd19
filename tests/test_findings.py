import copy
import json
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import ZOO, Net, pictures

from models import StudentNet
from netreview import Findings, affine_equivalent, learning_rate_range, review
from netreview.findings import CHECKS, SEVERITIES

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("fault", ZOO, ids=lambda fault: fault.name)
def test_planted_fault_is_found_in_its_place(fault):
    findings = review(*fault.faulty())
    assert (fault.check, fault.where) in [(finding.check, finding.where) for finding in findings], str(findings)
    severities = [SEVERITIES.index(finding.severity) for finding in findings]
    assert severities == sorted(severities)


@pytest.mark.parametrize("fault", ZOO, ids=lambda fault: fault.name)
def test_healthy_twin_is_left_in_peace(fault):
    findings = review(*fault.healthy())
    assert not [finding for finding in findings if finding.severity != "note"], str(findings)
    assert fault.check not in [finding.check for finding in findings], str(findings)


def test_recorded_comparison_is_of_this_zoo():
    """tests/compare_reviewers.py makes it again."""
    recorded = json.loads((ROOT / "assets" / "reviewers.json").read_text())["faults"]
    assert [row["fault"] for row in recorded[1:]] == [fault.name for fault in ZOO]
    for row in recorded:
        assert row["check"] in row["netreview"]
    assert recorded[0]["torchtest2"] == []  # the student's own fault is passed over


def test_the_students_network():
    torch.manual_seed(0)
    model = StudentNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    findings = review(model, torch.randn(32, 3, 32, 32), torch.arange(32) % 10, optimizer=optimizer)
    blocks = (0, 1, 3, 4, 6, 7, 9, 10)
    found = {(finding.check, finding.where) for finding in findings if finding.severity == "error"}
    assert found == {("discarded-output", f"features.{block}.relu") for block in blocks} | {("affine-network", "")}
    bare = {finding.where for finding in findings if finding.check == "missing-norm"}
    assert bare == {"features.2.conv", "features.5.conv", "features.8.conv"}
    pairs = [(finding.severity, finding.where) for finding in findings if finding.check == "linear-pair"]
    assert {where for severity, where in pairs if severity == "note"} == {f"features.{b}.depthwise" for b in blocks}


def test_everything_is_as_it_was(state_of_numpy_and_torch):
    torch.manual_seed(0)
    model = Net().train()
    model.norm1.eval()
    images, labels = pictures()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    def state():
        return (
            {name: value.clone() for name, value in model.state_dict().items()},
            {name: parameter.grad.clone() for name, parameter in model.named_parameters()},
            copy.deepcopy(optimizer.state_dict()),
            images.clone(),
        )

    before, randomness = state(), (state_of_numpy_and_torch(), random.getstate())
    review(model, images, labels, optimizer=optimizer)
    torch.testing.assert_close(state(), before, rtol=0, atol=0)
    assert (state_of_numpy_and_torch(), random.getstate()) == randomness
    assert model.training
    assert not model.norm1.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_in_place_layers_reused_modules_and_functions_do_not_confuse_it():
    class Tricky(Net):
        def __init__(self):
            super().__init__()
            self.inplace, self.shared = nn.ReLU(inplace=True), nn.Identity()

        def stem(self, x):
            x = self.norm1(self.conv1(x))
            self.inplace(x)  # writes into x: not dropped
            return self.shared(self.shared(x))

    assert not [f for f in review(Tricky(), *pictures()) if f.severity != "note"]


def test_affine_equivalent_of_any_affine_network():
    torch.manual_seed(0)
    with_softmax = StudentNet()
    with_softmax(torch.randn(64, 3, 32, 32))
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(900, 7))
    images = torch.randn(16, 3, 32, 32)
    for model, finish in ((with_softmax, lambda z: z.log_softmax(1)), (plain, lambda z: z)):
        matrix, bias = affine_equivalent(model, (3, 32, 32))
        expected = model.eval()(images)
        logits = finish(images.double().flatten(1) @ matrix + bias)
        assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
    with pytest.raises(ValueError, match="not affine"):
        affine_equivalent(StudentNet(use_relu=True), (3, 32, 32))
    with torch.no_grad(), pytest.raises(ValueError, match="no gradient"):
        affine_equivalent(plain, (3, 32, 32))


def test_range_test_finds_the_edge_of_stability():
    """On a parabola of curvature 1 gradient descent diverges from a rate of 2 on, whatever the start."""

    class Parabola(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([[3.0]]))

        def forward(self, x):
            return self.w.expand(len(x), 1)

    model = Parabola()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    curve = learning_rate_range(
        model, torch.zeros(4, 1), torch.zeros(4), lambda out, _: 0.5 * (out**2).mean() + 1, optimizer, steps=200
    )
    assert 0.01 < curve.steepest < 2
    assert curve.diverges is None or curve.diverges > 2
    assert model.w.item() == 3.0
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_findings_print_and_show_as_html():
    findings = review(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)), *pictures())
    assert "ERROR  affine-network" in str(findings)
    shown = findings._repr_html_()
    assert shown.count("<tr>") == 2
    assert "affine-network" in shown
    assert str(Findings()) == "No findings."


def test_images_without_labels_are_refused():
    with pytest.raises(ValueError, match="labels"):
        review(Net(), torch.zeros(4, 3, 16, 16), torch.zeros(3))


def test_every_check_says_what_it_looks_for_and_what_to_do():
    for check in CHECKS.values():
        assert check.severity in SEVERITIES
        assert check.doc, check.id
        assert check.doc.endswith(".")
        assert check.advice.endswith("."), check.id
