"""Attention diagnostics for vision transformers."""
