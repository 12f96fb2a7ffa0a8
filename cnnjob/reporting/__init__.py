"""Finished and unfinished runs as tables, figures and one HTML page."""
