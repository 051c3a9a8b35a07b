"""Volumes: one open volume, the handles on it, and the catalogue of all."""
