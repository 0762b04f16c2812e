"""CUDA graphs of calls."""

import torch


def captured(function):
    """A graph of all that a function launches, and its outputs."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())  # which may still write what the function reads
    with torch.cuda.stream(side):
        for _ in range(3):
            function()  # what happens once only must not happen in the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    return graph, outputs
