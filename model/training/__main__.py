"""For torchrun: `torchrun --nproc-per-node 8 -m model.training DATA …`."""

import typer

from model.training.command import train

if __name__ == "__main__":
    typer.run(train)
