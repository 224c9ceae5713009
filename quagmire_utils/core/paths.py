"""Paths that every layer shares."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the checkout: results/ and notebooks/ lie there
