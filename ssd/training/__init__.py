"""Training: settings, recipes, splits, steps, and the run itself."""
