"""Wants to end the program that imports it."""

import sys

sys.exit(3)
