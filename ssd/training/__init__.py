"""What decides a run: settings, recipes, splits, steps, and the run itself."""
