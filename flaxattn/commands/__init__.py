"""The commands of python -m flaxattn: each a file with `add`, its flags, and `run`."""
