"""Training: `tcm train`. `train.py` holds the loop; everything else is one thing it uses."""
