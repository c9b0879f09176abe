"""The monitor: reads the log, judges each window, and acts."""
