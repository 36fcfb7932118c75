"""Networks and curves as images. Must not know data sets, runs or databases."""
