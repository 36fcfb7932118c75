"""Benchmarks of the network, the trials and the coordinator. Must not be imported by what it measures."""
