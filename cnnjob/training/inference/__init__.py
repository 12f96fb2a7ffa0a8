"""Classification of images with a run's network: predictions, evaluations, and the examples for reports."""
