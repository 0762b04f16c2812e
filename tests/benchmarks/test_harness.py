"""What the harness does with contenders: no time is looked at."""

from dataclasses import replace

import harness
import pytest
import torch


class Benchmark:
    """pytest-benchmark's fixture, as far as the harness uses it."""

    def __init__(self):
        self.extra_info = {}

    def pedantic(self, target, rounds, warmup_rounds=0):
        for _ in range(rounds):
            target()


@pytest.fixture
def case():
    """Doubling numbers; one contender is wrong."""
    contenders = {"ssd_ext": lambda x: x[0] + x[0], "torchvision": lambda x: 2 * x[0], "tutorial": lambda x: 3 * x[0]}
    return harness.Case("ops", "double", {"numbers": 5}, lambda: (torch.arange(5.0),), contenders, harness.close(0))


@pytest.mark.parametrize("baseline", ["torchvision", "numpy"])
def test_contenders_are_also_timed_in_turn(case, baseline):
    calls = []
    case = replace(case, baseline=baseline)
    case.contenders[baseline] = case.contenders["torchvision"]
    for name, function in list(case.contenders.items()):
        case.contenders[name] = lambda x, name=name, function=function: calls.append(name) or function(x)
    benchmark = Benchmark()
    harness.Session().measure(benchmark, case, "ssd_ext", harness.CPU[0])
    assert benchmark.extra_info["in_turn_ms"] > 0
    assert calls[-2 * harness.IN_TURN_ROUNDS :] == [baseline, "ssd_ext"] * harness.IN_TURN_ROUNDS


def test_a_contender_that_disagrees_fails_alone_and_is_named(case):
    session = harness.Session()
    with pytest.raises(AssertionError, match="tutorial: result 0 is off by 4"):
        session.measure(Benchmark(), case, "tutorial", harness.CPU[-1])
    (row,) = session.left_out
    assert row["contender"] == "tutorial"
    assert row["reason"].startswith("disagrees: tutorial: result 0 is off by 4")
    session.measure(Benchmark(), case, "torchvision", harness.CPU[-1])
    assert session.left_out == [row]


def test_a_reason_takes_the_place_of_a_contender(case):
    session = harness.Session()
    case.contenders["tutorial"] = "too slow"
    with pytest.raises(pytest.skip.Exception, match="too slow"):
        session.measure(Benchmark(), case, "tutorial", harness.CPU[0])
    assert session.left_out[0]["reason"] == "too slow"
