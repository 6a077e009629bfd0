"""What runs have shown: statistics over seeds."""
