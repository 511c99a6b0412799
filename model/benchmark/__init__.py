"""`tcm bench`: how fast the models run here, stage by stage, and how much of the machine they use."""
