"""Freezing of the first stages of a backbone, whose weights are good already."""

from torch import nn

from ssd.networks import Network


def freeze(model: Network, stages: int) -> None:
    """Makes the first stages of the backbone keep their weights: their parameters require no gradient any more.

    Args:
        model: the network, which is changed in place.
        stages: number of stages, at least 0, see `Network.stages`.

    Raises:
        ValueError: the backbone has fewer stages.
    """
    all_stages = model.stages()
    if stages > len(all_stages):
        raise ValueError(
            f"freeze: the backbone of the network {model.name} has {len(all_stages)} stages, got {stages}; choose a "
            f"number from 0 to {len(all_stages)}"
        )
    for stage in all_stages[:stages]:
        for parameter in stage:
            parameter.requires_grad_(False)


def training_mode(model: nn.Module) -> None:
    """Puts a network into training mode, but batch norm of frozen stages into evaluation mode."""
    model.train()
    for module in model.modules():
        norm = isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm))
        if norm and module.weight is not None and not module.weight.requires_grad:
            module.eval()
