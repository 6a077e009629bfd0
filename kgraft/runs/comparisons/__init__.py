"""Comparisons: methods x seeds under one schedule, one split and one budget."""
