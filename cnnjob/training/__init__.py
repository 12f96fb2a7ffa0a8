"""Training, evaluation, prediction and export: from a job to a network and a finished run."""
