import pytest
from zoo import ZOO

from review import SEVERITIES, review


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
