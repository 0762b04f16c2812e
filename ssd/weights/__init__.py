"""From files of weights to networks: own checkpoints, those of other projects, pickled networks."""
