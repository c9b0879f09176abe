"""What an event is, how it gets onto the log, and the predictor that answers."""
