"""The network that a run starts from."""

from ssd.weights.loading import open_initial


def initial_model(n_classes, source=None, network=None, **config):
    """A network with random or trained weights, see `open_initial` and `Initial.build`."""
    return open_initial(source, network).build(n_classes, **config)
