"""Knowing who is alive."""
