"""Job files: what they may say, where they are looked up, and how they are varied."""
