"""Displacements of single pairs: kreg beside elastix, demons, SyN, optical flow."""
