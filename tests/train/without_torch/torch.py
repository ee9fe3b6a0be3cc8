"""Stands before PyTorch on the path of train.py's processes: a run needs none.

tensorboardX imports it wherever it is there, which takes as long as all other imports together.
"""

raise ImportError("train.py runs without PyTorch")
