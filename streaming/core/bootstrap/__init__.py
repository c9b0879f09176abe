"""Limits of window tests from a block bootstrap of a time-ordered reference: stretches.py, evidence.py, tails.py, calibration.py."""
