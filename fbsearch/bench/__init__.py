"""Measures how fast fbsearch is. Must not be imported by what it measures."""
