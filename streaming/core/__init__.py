"""The pure heart: pair, order, window, measure, judge, govern. No I/O and no clock of its own."""
