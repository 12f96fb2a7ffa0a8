"""Training, evaluating, predicting and exporting: a job becomes a network and a finished run."""
