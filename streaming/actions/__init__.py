"""What is done about a decision: retrain, Slack, webhook, incident record."""
