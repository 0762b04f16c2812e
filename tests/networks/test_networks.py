"""What all networks have in common: names, options, sizes, priors and outputs."""

import pytest

from ssd.networks import NETWORKS, build_network


def test_a_name_that_no_network_has():
    with pytest.raises(ValueError, match="network must be one of ssd300.*, got 'yolo'"):
        build_network("yolo", 2)
    assert all(name == kind.name for name, kind in NETWORKS.items())
