"""Imports Lightning once, before tests turn warnings of third parties into errors."""

import tests.train.recipes  # noqa: F401
