"""A CUSUM of ranks with limits that keep a budget of false alarms: signals.py, calibration.py, recursion.py."""
