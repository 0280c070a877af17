"""How the shipped weights are made. Needs the `train` extra."""
