"""What a study says, as a page and in the dashboard."""
