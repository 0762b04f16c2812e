"""Loading networks from files: checkpoints of this project and of others, and pickled networks."""
