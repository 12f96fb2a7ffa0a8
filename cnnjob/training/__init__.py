"""Training, evaluation, prediction and model export."""
