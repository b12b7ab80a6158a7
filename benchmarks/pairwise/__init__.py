"""Pairwise registration beside its peers, on synthetic and real pairs; see __main__.py."""
