"""Convolutions in halves as products of tiles on tensor cores."""
