"""What is done about a decision: the outbox and its worker, and one file per action."""
