"""Saying what happened."""
