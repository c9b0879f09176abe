"""Benchmarks that anyone can repeat: how soon each policy sees a change and how often it cries wolf, and how fast the core is."""
