"""What several test modules use: test beds, peers that misbehave, real processes."""
