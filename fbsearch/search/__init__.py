"""One process decides: the coordinator of a search. Must not import torch."""
