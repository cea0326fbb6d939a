"""What scripts/bench and scripts/soak share. Python's standard library only."""
